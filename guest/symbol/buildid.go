package symbol

import (
	"debug/elf"
	"encoding/hex"
	"fmt"
)

// maxNotes bounds the notes that are read; a build ID's own takes 36 bytes.
const maxNotes = 64 << 10

// BuildID returns the GNU build ID of an ELF file in hexadecimal, as `file` and `perf` show it, or
// Go's build ID where there is only that; "" without an error when the file has neither.
func BuildID(path string) (string, error) {
	f, err := openFile(path)
	if err != nil {
		return "", fmt.Errorf("read build ID: %w", err)
	}
	defer f.Close()
	e, err := openELF(f)
	if err != nil {
		return "", fmt.Errorf("read build ID of %s: %w", path, err)
	}
	return buildID(e), nil
}

func buildID(f *elf.File) string {
	goID := ""
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > maxNotes {
			continue
		}
		b := make([]byte, p.Filesz)
		n, _ := p.ReadAt(b, 0) // cut short: the notes that are there
		for d := (decoder{b: b[:n]}); len(d.b) >= 12; {
			// Elf64_Nhdr (System V gABI, "Note Section"): both parts are padded to 4 bytes.
			nameLen, descLen, kind := d.uint(4), d.uint(4), d.uint(4)
			rest := d.b
			if d.skip((nameLen + 3) &^ 3); d.bad {
				break
			}
			name, desc := rest[:nameLen], d.b
			if descLen > uint64(len(desc)) {
				break
			}
			d.skip(min((descLen+3)&^3, uint64(len(desc))))
			switch {
			case string(name) == "GNU\x00" && kind == 3: // NT_GNU_BUILD_ID
				return hex.EncodeToString(desc[:descLen])
			case string(name) == "Go\x00\x00" && kind == 4: // cmd/internal/buildid: ELF_NOTE_GOBUILDID_TAG
				goID = string(desc[:descLen])
			}
		}
	}
	return goID
}
