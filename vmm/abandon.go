package vmm

// Abandon ends a machine that was prepared and is not to be entered: its vCPU has run nothing.
func (m *Machine) Abandon() error { return m.born.End(resumeLimit) }
