package workload

// Each returns the address of its program's first instruction. The programs are data to us: never call one.

func spinCode() *byte
func jitterCode() *byte
func cyclicCode() *byte
func controlCode() *byte
func exitsCode() *byte
func faultCode() *byte
