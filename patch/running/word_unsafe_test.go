package running_test

import "unsafe"

func word(b []byte) *uint64 { return (*uint64)(unsafe.Pointer(&b[0])) }
