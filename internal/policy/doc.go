// Package policy holds the rules of this repository as tests: what may import what, where unsafe code
// may stand, what a memory-ordering operation must say of itself, what documents must agree with the
// code, and what a commit message must argue. `make check` runs it; it needs the Go toolchain and, for
// the history, git.
//
// A rule is a function from a tree of files to a list of violations, so that it can be run on the real
// repository and on small broken ones: every rule has at least one file testdata/*.txtar that breaks it,
// and a rule without such a file fails.
//
// Invariants:
//  1. A rule reads the files that git tracks, and untracked files that are not ignored: a violation is
//     seen before it is committed.
//  2. A violation names the file, the line where there is one, and what to do.
//  3. Nothing here needs the network, root, KVM, or a package that compiles: rules parse, they do not
//     type-check. imports_test.go compares its own parsing with `go list -deps`.
//
// Alternatives rejected: golangci-lint's depguard and forbidigo (their configuration has no room for the
// reason of a ban, and cannot see assembly or documents); vet analyzers of our own (need packages that
// type-check, and a second binary); a shell script of greps (cannot be run on a broken tree to show that
// it bites).
package policy
