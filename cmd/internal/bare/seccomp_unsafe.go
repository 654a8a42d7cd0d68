package bare

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/cloister-vmm/cloister/guest/abi"
	"golang.org/x/sys/unix"
)

// auditX8664 is AUDIT_ARCH_X86_64 (include/uapi/linux/audit.h).
const auditX8664 = 0xc000003e

// filter is the program's seccomp filter: Cloister's two calls are ours to answer, all else is the kernel's.
// It looks at nothing but number and architecture, so that the kernel decides "allow" from a bitmap made
// beforehand (kernel/seccomp.c, seccomp_cache_check_allow; Linux 5.11).
func filter() []unix.SockFilter {
	const ( // offsets in struct seccomp_data
		nr   = 0
		arch = 4
	)
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	equal := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	answer := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	return []unix.SockFilter{
		load(arch),
		equal(auditX8664, 0, 3),
		load(nr),
		equal(abi.SysIsolate, 2, 0),
		equal(abi.SysGapRecord, 1, 0),
		answer(unix.SECCOMP_RET_ALLOW),
		answer(unix.SECCOMP_RET_USER_NOTIF),
	}
}

// filterBytes is struct sock_fprog followed by the filter, as they lie at address at in the program.
func filterBytes(at uint64) []byte {
	const header = 16
	list := filter()
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(list)))
	b = binary.LittleEndian.AppendUint64(b, at+header)
	for _, f := range list {
		b = binary.LittleEndian.AppendUint16(b, f.Code)
		b = append(b, f.Jt, f.Jf)
		b = binary.LittleEndian.AppendUint32(b, f.K)
	}
	return b
}

// notification is struct seccomp_notif, answer struct seccomp_notif_resp (include/uapi/linux/seccomp.h).
type notification struct {
	id    uint64
	tid   uint32 // 0: a thread that this process cannot see
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type answer struct {
	id    uint64
	val   int64
	error int32
	flags uint32
}

// receive takes the next call that waits. The error is ENOENT if its thread died meanwhile.
func receive(listener int) (n notification, err error) {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); e != 0 {
		return n, e
	}
	return n, nil
}

// reply lets the thread go on with the result: 0, or an error number.
func reply(listener int, id uint64, e unix.Errno) error {
	a := answer{id: id, error: -int32(e)}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&a))); e != 0 && e != unix.ENOENT {
		return fmt.Errorf("answer a call of the program: %w", e)
	}
	return nil
}
