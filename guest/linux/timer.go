package linux

type timer struct{}

func (*timer) taken(*Kernel, *siginfo) {}

type timers struct{}

func (*timers) rearmReal(*Kernel) {}
