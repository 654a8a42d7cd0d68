package main

func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)
