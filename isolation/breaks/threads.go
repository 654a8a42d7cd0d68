package breaks

import "unicode/utf8"

// Bounds of what is kept of the guest's threads: their names, like their number, are the program's to choose.
const (
	// MaxThreadName is the longest name, bytes: TASK_COMM_LEN without its NUL (prctl(2), PR_SET_NAME).
	MaxThreadName = 15
	// MaxThreads is how many threads a vCPU's list keeps, the latest.
	MaxThreads = 64
)

// GuestThread is a thread of the guest.
type GuestThread struct {
	ID   int    `json:"id"`   // the guest's own
	Name string `json:"name"` // its latest; at most MaxThreadName bytes, printable
}

// Threads are the threads of the guest that one vCPU has executed, in the order in which it got them.
// The zero Threads is ready for use.
type Threads struct {
	List    []GuestThread // the latest MaxThreads
	NotKept uint64        // older ones
}

// Add says that the vCPU has this thread now. The same thread as the latest one has a new name.
func (t *Threads) Add(id int, name string) {
	g := GuestThread{id, ThreadName(name)}
	if n := len(t.List); n > 0 && t.List[n-1].ID == id {
		t.List[n-1] = g
		return
	}
	if len(t.List) == MaxThreads {
		t.List = append(t.List[:0], t.List[1:]...)
		t.NotKept++
	}
	t.List = append(t.List, g)
}

// Name is that of the thread that the vCPU has, or had last; empty where that is not known.
func (t *Threads) Name() string {
	if len(t.List) == 0 {
		return ""
	}
	return t.List[len(t.List)-1].Name
}

// ThreadName makes a name that came from the guest fit to be shown anywhere: valid UTF-8 of printable
// characters, a question mark for each that is none, at most MaxThreadName bytes.
func ThreadName(s string) string {
	s = clean(s[:min(len(s), 4*MaxThreadName)]) // of a long one, no more than can matter
	for i, c := range s {
		if i+utf8.RuneLen(c) > MaxThreadName {
			return s[:i]
		}
	}
	return s
}
