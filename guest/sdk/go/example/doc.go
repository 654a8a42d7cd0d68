// Command example seals its vCPU, loops, and unseals: the smallest program that uses the SDK for Go.
//
// Invariants:
//  1. It ends with status 0 and prints the same line natively and under Cloister.
//  2. Between the two calls it makes no system call and does not allocate.
//
// Alternatives rejected: a testable Example function (it runs inside `go test`, so it cannot be a guest).
package main
