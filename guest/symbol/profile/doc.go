// Package profile writes what was measured in the formats of viewers that others have made: pprof
// profiles of breaks by guest stack, and timelines for Perfetto and chrome://tracing.
//
// It knows neither ledgers nor virtual machines: rows and events come in as plain values, names come
// from whoever can tell them (symbol.Table can).
//
// Invariants:
//  1. A profile's sample values add up to the rows given: nothing is dropped, a row without a stack
//     becomes a sample at a frame that says so.
//  2. A trace cut at any byte behind its first event can be opened (trace.go says how much is lost).
//  3. Losses are written, never left out: a trace with lost events shows how many, and when.
//
// Alternatives rejected: Perfetto's protobuf format (a schema of some thousands of lines to state what
// one line of JSON states; nothing here is hot); one profile per cause (pprof filters by label).
package profile
