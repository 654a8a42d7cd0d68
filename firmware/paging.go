package firmware

// Bits of a page-table entry, the same at all four levels where they exist (SDM vol. 3A, 4.5.4, tables 4-15
// to 4-20; APM vol. 2, 5.4). A table entry needs W and U wherever a page below it has them.
const (
	PTEPresent  = 1 << 0
	PTEWrite    = 1 << 1
	PTEUser     = 1 << 2
	PTEThrough  = 1 << 3 // PWT
	PTENoCache  = 1 << 4 // PCD
	PTEAccessed = 1 << 5
	PTEDirty    = 1 << 6 // pages only
	PTEHuge     = 1 << 7 // PS: a PDPTE is a 1 GiB page, a PDE a 2 MiB page
	PTEGlobal   = 1 << 8
	PTENX       = 1 << 63 // reserved unless EFER.NXE

	// PTEAddr covers the physical address of a table or a 4 KiB page, bits 12 to 51.
	PTEAddr = 1<<52 - 1<<12
)

// PTETable gives an entry that points to a lower table at gpa (page-aligned) and restricts nothing:
// permissions are the leaf's. Accessed is set in advance, so the processor never writes to it.
func PTETable(gpa uint64) uint64 {
	return gpa&PTEAddr | PTEPresent | PTEWrite | PTEUser | PTEAccessed
}

// PTELeaf gives an entry for the page at gpa. Present, accessed and dirty are set in advance: with all three
// the processor never writes to guest page tables. flags are PTEWrite, PTEUser, PTEHuge, PTENX, and so on.
func PTELeaf(gpa, flags uint64) uint64 {
	return gpa&PTEAddr | PTEPresent | PTEAccessed | PTEDirty | flags
}

// PTEIndex gives the index of va in its table of level 1 (4 KiB pages) to 4 (root).
func PTEIndex(va uint64, level int) int { return int(va >> (12 + 9*(level-1)) & 511) }
