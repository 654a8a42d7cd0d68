// Goring PATH N: puts N records into a ring, sealed, as `ring produce` of testdata/programs does in C.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"github.com/cloister-vmm/cloister/guest/sdk/go"
	"github.com/cloister-vmm/cloister/guest/sdk/go/ring"
)

// The first thread is the one that --cpu gives a core to.
func init() { runtime.LockOSThread() }

var fulls int

func put(p *ring.Producer, rec []byte) error {
	for {
		err := p.Put(rec)
		if err != ring.ErrFull {
			return err
		}
		fulls++
	}
}

// fill makes record i: its number, then bytes that depend on it.
func fill(buf []byte, i uint64) []byte {
	rec := buf[:8+i*7%300]
	binary.LittleEndian.PutUint64(rec, i)
	for k := 8; k < len(rec); k++ {
		rec[k] = byte(i + uint64(k))
	}
	return rec
}

func run() error {
	count, err := strconv.ParseUint(os.Args[2], 10, 64)
	if err != nil {
		return err
	}
	p, err := ring.OpenProducer(os.Args[1])
	if err != nil {
		return err
	}
	buf := make([]byte, 512)
	if err := put(p, fill(buf, 0)); err != nil {
		return err
	}
	for i := range uint64(200) { // until somebody takes: the ring is full before
		if err := put(p, fill(buf, i+1)); err != nil {
			return err
		}
	}
	var failed error
	err = cloister.Sealed(func() {
		for i := uint64(201); i < count && failed == nil; i++ {
			failed = put(p, fill(buf, i))
		}
		p.CloseWrite()
	})
	if err != nil || failed != nil {
		return fmt.Errorf("%v, %v", err, failed)
	}
	often := "never full"
	if fulls > 0 {
		often = "full at times"
	}
	fmt.Printf("%d records, 0 dropped, %s\n", count, often)
	return p.Close()
}

func main() {
	if err := run(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
