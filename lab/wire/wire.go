package wire

import "time"

// Where things are in the guest.
const (
	JobPath     = "/lab/job.json" // the Job
	SrcDir      = "/lab/src"      // the repository
	BinDir      = "/lab/bin"      // in PATH: cloister
	TestDir     = "/lab/test"     // test binaries
	ModuleDir   = "/lab/modules"  // kernel modules
	GuestDir    = "/lab/guest"    // kernels that tests boot as guests
	OutDir      = "/lab/out"      // comes back to the host
	ConsoleDev  = "/dev/ttyS0"    // kernel messages, shell
	ControlDev  = "/dev/ttyS1"    // Messages
	GuestKernel = GuestDir + "/vmlinuz"
)

// BeatEvery is the guest time between two beats.
const BeatEvery = 5 * time.Second

// Job is what the guest has to do.
type Job struct {
	Machine string   // name, for messages
	Modules []Module // in load order
	Env     []string // KEY=value, for tasks and the shell
	Tasks   []Task   // run one after the other; a failure does not stop the rest
	Shell   bool     // afterwards, a shell on the console
	Disk    string   // block device that takes OutDir as a tar archive; empty: none
}

// Module is a kernel module to load.
type Module struct {
	Path   string // in the guest
	Params string // as on insmod's command line
}

// Task is one program to run.
type Task struct {
	Name    string   // import path, or what the host calls it
	Dir     string   // working directory
	Argv    []string // Argv[0] is a path in the guest
	Timeout time.Duration
}

// The kinds of Message.
const (
	KindHello = "hello" // first: Text is uname -r, Facts what KVM and the CPUs are
	KindBeat  = "beat"  // init lives
	KindNote  = "note"  // Text is for a person
	KindStart = "start" // Task begins
	KindLine  = "line"  // Text is one line of Task's output, without newline
	KindEnd   = "end"   // Task ended with Status
	KindDone  = "done"  // last: Status is 0 if every task's was
)

// Message is one line from the guest.
type Message struct {
	Kind   string
	Uptime float64           // guest seconds since boot
	Task   int               `json:",omitempty"` // index into Job.Tasks
	Text   string            `json:",omitempty"`
	Status int               `json:",omitempty"` // as a shell gives it; 128+n for signal n
	Facts  map[string]string `json:",omitempty"`
}
