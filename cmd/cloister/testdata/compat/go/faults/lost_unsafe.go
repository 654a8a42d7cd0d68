package main

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// lost reads beyond the end of a file that was made shorter after it had been mapped: SIGBUS, whose address the panic has.
func lost() {
	f, err := os.CreateTemp(".", "lost")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(f.Name())
	page := os.Getpagesize()
	fmt.Println(f.Truncate(int64(2 * page)))
	b, err := syscall.Mmap(int(f.Fd()), 0, 2*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(f.Truncate(1))
	for _, at := range []int{page - 1, page, 2*page - 1} {
		func() {
			defer func() {
				if fault, ok := recover().(interface{ Addr() uintptr }); ok {
					fmt.Println("lost byte", at, "is", fault.Addr()-uintptr(unsafe.Pointer(&b[0])))
				}
			}()
			fmt.Println("byte", at, "is", b[at])
		}()
	}
	fmt.Println(syscall.Munmap(b), f.Close())
}
