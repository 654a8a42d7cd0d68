// Package model holds the Promela models of the concurrent protocols, and the counter-examples of their wrong variants, for the tests that
// hold the code against them. `make model` checks the models themselves; the head of each says what it is of.
//
// Invariants:
//
//  1. What is embedded is what `make model` checks: the same files, no copies.
//  2. A wrong variant that a model's head lists has its trail, and each trail has its variant (vcpu.TestTrails).
//
// Rejected: tests that open the files by their paths. A test's binary also runs where the source is not, in the lab's machines, and there
// the trails failed as missing.
package model

import "embed"

// Files are the models (patch.pml) and the trails (trails/NAME.txt).
//
//go:embed *.pml trails/*.txt
var Files embed.FS
