// Package lanes counts what the lanes of a test run did, from the event streams
// that `go test -json` and the lab write, and prints the closing table.
//
// A stream is one JSON object a line: first a header (Action "lane": which lane,
// on which kernel and KVM back end), then test2json events as documented by
// `go doc test2json`.
//
// Invariants:
//
//  1. Only leaves are counted: a test with subtests is a heading, and its
//     failure is counted through the subtest, or as its own if no subtest failed.
//  2. What did not end did not pass: a test that started and has no end, a
//     package without a verdict, a build failure and a broken stream are failures.
//  3. Every skip is listed with its reason; one without a reason from testenv is
//     listed as such.
//  4. A lane that could not run has a row that says so, with the reason above the
//     table; it counts for nothing. So does each time that a lane's machine was
//     started again.
//  5. What failed at first and passed when it was run again is passed, and is named
//     above the table; what is grave is not run again (Judge).
//
// Alternatives rejected: gotestsum and test2json consumers of that family (they
// know packages and tests, not lanes, and drop the reason of a skip); counting in a
// TestMain of every package (forgotten once, the count is wrong and nobody sees it).
package lanes
