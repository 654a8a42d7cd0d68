// Command example seals, loops and unseals: once, or with -lines once for each line of standard input. It works natively, too.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"

	cloister "github.com/cloister-vmm/cloister/guest/sdk/go"
)

// refused is the status when the core is not quiet enough: EX_TEMPFAIL of sysexits.h.
const refused = 75

func main() {
	lines := flag.Bool("lines", false, "seal once for each line of standard input, and print what came of it")
	flag.Parse()
	runtime.LockOSThread() // a vCPU is a thread
	debug.SetGCPercent(-1) // a collection would stop the loop
	what := once
	if *lines {
		what = forLines
	}
	err := what()
	switch {
	case errors.Is(err, syscall.EAGAIN):
		fmt.Fprintln(os.Stderr, "example: not sealed: the core is not quiet enough now: try again later")
		os.Exit(refused)
	case err != nil:
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

// once is what a program does. EAGAIN is the only error that is worth another try.
func once() error {
	if err := cloister.Isolate(true); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("seal: %w", err)
	}
	sum := uint64(0)
	for i := range uint64(1_000_000) {
		sum += i
	}
	if err := cloister.Isolate(false); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("unseal: %w", err)
	}
	fmt.Println("sum", sum)
	return nil
}

func forLines() error {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		err := once()
		if errors.Is(err, syscall.EAGAIN) {
			fmt.Println("again")
		} else if err != nil {
			return err
		}
	}
	return in.Err()
}
