package workload

import (
	"encoding/binary"
	"fmt"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// recordSize is the size in bytes of an abi.GapRecord (TestHeaderMatchesGo).
const recordSize = 128 + 8*abi.GapBuckets + 16*abi.GapRing

// DecodeRecord reads an abi.GapRecord from a program's memory (at RecordAddr) or from its --dump output;
// bytes after the record are ignored. The error says what is wrong with b: too short, no record, or
// a kind that this version does not know. The numbers are the guest's word: a hostile program chooses them.
func DecodeRecord(b []byte) (abi.GapRecord, error) {
	var r abi.GapRecord
	if _, err := binary.Decode(b, binary.LittleEndian, &r); err != nil {
		return abi.GapRecord{}, fmt.Errorf("gap record: %d bytes, want %d: the program did not write it whole", len(b), recordSize)
	}
	if r.Magic != abi.GapMagic {
		return abi.GapRecord{}, fmt.Errorf("gap record: magic %#x, want %#x: no record is there", r.Magic, uint64(abi.GapMagic))
	}
	if r.Kind != abi.GapKindLoop && r.Kind != abi.GapKindCyclic {
		return abi.GapRecord{}, fmt.Errorf("gap record: kind %d, want %d or %d: made for another version", r.Kind, abi.GapKindLoop, abi.GapKindCyclic)
	}
	return r, nil
}
