package vcpu

// warm fetches what a stop uses.
//
//go:noescape
func warm(c *control)

//go:noescape
func load64(p *uint64) uint64

//go:noescape
func load32(p *uint32) uint32

//go:noescape
func store64(p *uint64, v uint64)

// cas64 stores new if *p is old, and reports whether it did.
//
//go:noescape
func cas64(p *uint64, old, new uint64) bool

// put64 is store64 without its barrier: stores before it are seen before it, loads behind it need not wait for it.
//
//go:noescape
func put64(p *uint64, v uint64)

//go:noescape
func storeByte(p *uint8, v uint8)

//go:noescape
func add32(p *uint32, d uint32)

func pause()

func serialise(kind uint64)

//go:noescape
func futexWait(p *uint32, v uint32)

//go:noescape
func futexWake(p *uint32)

//go:noescape
func drain(set *uint64, zero *[2]uint64) bool

// loop is entered by spawn, in assembly.
var _ = loop

//go:noescape
func spawn(stackTop uintptr, c *control, entry uintptr) (tid int64)

// takeLine fetches the line of a byte to be written soon; it changes nothing (PREFETCHW, Intel SDM volume 2B: a hint).
//
//go:noescape
func takeLine(p *uint8)

// poke writes a word of guest text through the private alias, which is mapped while the guest runs.
func poke(addr uintptr, v uint64)

// peek reads a word at a host address that is not the Go heap's, nor what the guest can map a file to: a file that was made shorter would end the VMM.
func peek(addr uintptr) uint64

// readOwn copies n bytes from src, an address of this process, to dst, and returns how many were read or -errno: what cannot be read is EFAULT here,
// where an access would be a SIGBUS (process_vm_readv(2)).
//
//go:noescape
func readOwn(pid int64, dst *uint64, src, n uintptr) int64
