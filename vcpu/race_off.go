//go:build !race

package vcpu

func (t *Thread) raceSaw()  {}
func (t *Thread) raceSays() {}
