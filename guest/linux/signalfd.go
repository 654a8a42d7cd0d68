package linux

func (k *Kernel) levelSignalFDs() {}
