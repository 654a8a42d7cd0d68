package main

import "unsafe"

// word is 8 aligned bytes as the one word that they are.
func word(b []byte) *uint64 { return (*uint64)(unsafe.Pointer(&b[0])) }
