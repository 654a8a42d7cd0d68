package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	cloister "github.com/cloister-vmm/cloister/guest/sdk/go"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

func run() error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
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
