package ring

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// Path is where a program under Cloister finds the ring of that name.
func Path(name string) string { return abi.RingDir + name }

// Format makes an empty ring of memory that starts a page: abi.RingData bytes and a power of two of data behind them.
// Nobody may use it yet. The error says what is wrong with the memory.
func Format(mem []byte) error {
	n := uint64(len(mem)) - abi.RingData
	if len(mem) < abi.RingData || !ValidSize(n) || uintptr(unsafe.Pointer(unsafe.SliceData(mem)))%abi.Page != 0 {
		return fmt.Errorf("ring: %d bytes of memory: want a page and then a power of two, %d to %d, on a page's border", len(mem), abi.RingMinSize, abi.RingMaxSize)
	}
	h := (*abi.RingHeader)(unsafe.Pointer(&mem[0]))
	*h = abi.RingHeader{Version: abi.RingVersion, Size: n, Data: abi.RingData}
	h.Magic = abi.RingMagic
	return nil
}

// NewProducer is the producer of a ring that lies in memory that starts a page and outlives it. The error says what is wrong with the header,
// or is ErrCorrupt or ErrClosed.
func NewProducer(mem []byte) (*Producer, error) {
	p := &Producer{}
	if err := p.take(mem); err != nil {
		return nil, err
	}
	// ORDER(O11) the producer's own word (P4); pairs with CloseWrite of one that came before. Without it a ring would be
	// written whose consumer has seen its end.
	if atomic.LoadUint64(&p.h.Closed) != 0 {
		return nil, ErrClosed
	}
	return p, nil
}

// NewConsumer is the consumer of a ring that lies in memory that starts a page and outlives it. Errors as NewProducer's, but ErrClosed.
func NewConsumer(mem []byte) (*Consumer, error) {
	c := &Consumer{}
	if err := c.take(mem); err != nil {
		return nil, err
	}
	return c, nil
}

func (m *memory) take(mem []byte) error {
	if len(mem) < abi.RingData || uintptr(unsafe.Pointer(&mem[0]))%abi.Page != 0 {
		return fmt.Errorf("ring: %d bytes of memory: want a page of header on a page's border, and data", len(mem))
	}
	h := (*abi.RingHeader)(unsafe.Pointer(&mem[0]))
	// ORDER(none): the header does not change once the ring has a name; a copy, so that what was checked is what is used.
	magic, version, n, data := atomic.LoadUint64(&h.Magic), atomic.LoadUint64(&h.Version), atomic.LoadUint64(&h.Size), atomic.LoadUint64(&h.Data)
	n, err := size(magic, version, n, data, len(mem))
	if err != nil {
		return fmt.Errorf("ring: %w", err)
	}
	m.h, m.data = h, mem[abi.RingData:][:n:n]
	m.words = unsafe.Slice((*uint64)(unsafe.Pointer(&m.data[0])), n/8)
	return m.attach()
}

// OpenProducer opens a ring file as its producer. It is the only one, of those who open it so or by `cloister ring`,
// until Close or the end of the process. Errors name the path and what the kernel refused or the header lacks.
func OpenProducer(path string) (*Producer, error) {
	mem, err := open(path, 0, "producer")
	if err != nil {
		return nil, err
	}
	p, err := NewProducer(mem)
	if err != nil {
		return nil, closed(path, mem, err)
	}
	p.mapped = mem
	return p, nil
}

// OpenConsumer opens a ring file as its consumer, as OpenProducer does.
func OpenConsumer(path string) (*Consumer, error) {
	mem, err := open(path, 1, "consumer")
	if err != nil {
		return nil, err
	}
	c, err := NewConsumer(mem)
	if err != nil {
		return nil, closed(path, mem, err)
	}
	c.mapped = mem
	return c, nil
}

func closed(path string, mem []byte, err error) error {
	if e := syscall.Munmap(mem); e != nil {
		return fmt.Errorf("%s: %w; then munmap: %w", path, err, e)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// Close gives the memory back, if the ring was opened. It must not be used any more.
func (m *memory) Close() error {
	mem := m.mapped
	m.mapped, m.data, m.words, m.h, m.corrupt = nil, nil, nil, nil, true
	if mem == nil {
		return nil
	}
	return syscall.Munmap(mem)
}

// Linux, include/uapi/linux/fcntl.h; package syscall lacks them.
const (
	getSeals   = 1034 // F_GET_SEALS
	sealShrink = 2    // F_SEAL_SHRINK
	ofdSetLock = 37   // F_OFD_SETLK
)

// open maps a ring file. The mapping keeps the open file, and so its lock, when the descriptor is closed.
func open(path string, role int64, name string) ([]byte, error) {
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	mem, err := mapRing(fd, role, name)
	if e := syscall.Close(fd); err == nil && e != nil {
		err = closed("close", mem, e)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return mem, nil
}

func mapRing(fd int, role int64, name string) ([]byte, error) {
	// Whoever could make the file shorter could give this process a SIGBUS.
	seals, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), getSeals, 0)
	if errno != 0 || seals&sealShrink == 0 {
		return nil, fmt.Errorf("not a ring: it is no memory file that is sealed against shrinking")
	}
	lock := syscall.Flock_t{Type: syscall.F_WRLCK, Start: role, Len: 1}
	if err := syscall.FcntlFlock(uintptr(fd), ofdSetLock, &lock); err != nil {
		return nil, fmt.Errorf("the ring has a %s already: %w", name, err)
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("fstat: %w", err)
	}
	if st.Size < abi.RingData+abi.RingMinSize || st.Size > abi.RingData+abi.RingMaxSize {
		return nil, fmt.Errorf("not a ring: the file has %d bytes", st.Size)
	}
	mem, err := syscall.Mmap(fd, 0, int(st.Size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED|syscall.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mmap of %d bytes: %w", st.Size, err)
	}
	return mem, nil
}
