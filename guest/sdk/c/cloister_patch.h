/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cloister_patch.h: what of a program can be patched while it runs (docs/patching.md). Including it says that the program can: it then gets
 * room for new code. Everything here works natively too, where nobody patches. See README.md beside this file.
 *
 * What is declared stands in ELF notes (guest/abi/patch.go): the name is Cloister's, addresses are distances from the field that holds them.
 * A name is a string literal of letters, digits, '.', '_' and '-'; sites of one name change together.
 */
#ifndef CLOISTER_PATCH_H
#define CLOISTER_PATCH_H

#include "cloister.h"

#if defined(__has_attribute)
#if __has_attribute(patchable_function_entry)
#define CLOISTER_PATCH_ENTRY __attribute__((patchable_function_entry(5, 0)))
#endif
#endif
#ifndef CLOISTER_PATCH_ENTRY
#error "cloister_patch.h needs a compiler with patchable_function_entry: gcc 8 or clang 10"
#endif

/*
 * Before a function: it can be replaced. It begins with room for a jump, is never inlined, cloned, or left out because of what the compiler
 * knows of its body: a replacement may do something else. Clang can only be told that by weak linkage, so there it cannot be static.
 */
#if __has_attribute(noipa)
#define CLOISTER_PATCHABLE CLOISTER_PATCH_ENTRY __attribute__((noipa, noinline))
#else
#define CLOISTER_PATCHABLE CLOISTER_PATCH_ENTRY __attribute__((weak, noinline))
#endif

#define CLOISTER_PATCH_STRING(x) #x
#define CLOISTER_PATCH_TEXT(x) CLOISTER_PATCH_STRING(x) /* a number of cloister.h for the assembler */

/* One note. Flag '?' puts it into the section group of the code around it, so that it goes where that goes (inline functions of C++). */
#define CLOISTER_PATCH_NOTE(section, type, description) \
	"\t.pushsection .note.cloister," section "\n" \
	"\t.p2align 2\n" \
	"\t.long 4344f - 4343f, 4346f - 4345f, " CLOISTER_PATCH_TEXT(type) "\n" \
	"4343:\t.asciz \"" CLOISTER_NOTE_OWNER "\"\n" \
	"4344:\t.p2align 2\n" \
	"4345:\n" description \
	"4346:\t.p2align 2\n" \
	"\t.popsection\n"

/* One site, the instruction between the labels 4340 and 4341. */
#define CLOISTER_PATCH_SITE(kind, more, name) \
	CLOISTER_PATCH_NOTE("\"a?\",@note", CLOISTER_NOTE_SITE, \
		"\t.long " CLOISTER_PATCH_TEXT(kind) ", 4341b - 4340b\n" \
		"\t.quad 4340b - .\n" more "\t.asciz \"" name "\"\n")

#define CLOISTER_PATCH_NAME(name) \
	(void)sizeof(char[sizeof(name) > 1 && sizeof(name) <= CLOISTER_SITE_NAME + 1 ? 1 : -1])

__asm__(CLOISTER_PATCH_NOTE("\"a\",@note", CLOISTER_NOTE_PATCHABLE, ""));

/*
 * The immediate of one MOV, of 8, 16, 32 or 64 bits, that can be changed: an expression of type uint8_t ... uint64_t. initial is a constant.
 * It is read each time that it is executed. The immediate lies in one aligned 8-byte word, which takes up to 13 bytes of NOPs before it. The bytes are
 * written out, in RAX, since an assembler may choose a shorter MOV for a small number.
 */
#define CLOISTER_SITE_IMM8(name, initial) CLOISTER_PATCH_IMM(uint8_t, name, initial, "", "0xb0", ".byte", 1, 1)
#define CLOISTER_SITE_IMM16(name, initial) CLOISTER_PATCH_IMM(uint16_t, name, initial, "\t.p2align 2\n", "0x66, 0xb8", ".short", 2, 2)
#define CLOISTER_SITE_IMM32(name, initial) CLOISTER_PATCH_IMM(uint32_t, name, initial, "\t.p2align 3\n", "0xb8", ".long", 1, 4)
#define CLOISTER_SITE_IMM64(name, initial) \
	CLOISTER_PATCH_IMM(uint64_t, name, initial, "\t.p2align 3\n\t.byte 0x66, 0x0f, 0x1f, 0x44, 0, 0\n", "0x48, 0xb8", ".quad", 2, 8)

#define CLOISTER_PATCH_IMM(type, name, initial, pad, opcode, directive, offset, width) \
	__extension__({ \
		type cloister_value; \
		CLOISTER_PATCH_NAME(name); \
		__asm__ __volatile__( \
			pad "4340:\t.byte " opcode "\n\t" directive " %c1\n4341:\n" \
			CLOISTER_PATCH_SITE(CLOISTER_SITE_IMM, "\t.long " #offset ", " #width "\n", name) \
			: "=a"(cloister_value) : "i"((type)(initial))); \
		cloister_value; \
	})

/*
 * A condition that costs a 5-byte NOP while it is off, and a jump while it is on: an expression, 0 or 1. initially is a constant.
 * `if (cloister_branch("trace"))` is off until it is patched.
 */
#define cloister_branch(name) CLOISTER_BRANCH(name, 0)
#define CLOISTER_BRANCH(name, initially) \
	__extension__({ \
		__label__ cloister_on; \
		int cloister_taken = 1; \
		CLOISTER_PATCH_NAME(name); \
		__asm__ goto( \
			"\t.p2align 3\n" \
			"4340:\n\t.if %c0\n\t.byte 0xe9\n\t.long %l[cloister_on] - 4341f\n" \
			"\t.else\n\t.byte 0x0f, 0x1f, 0x44, 0, 0\n\t.endif\n4341:\n" \
			CLOISTER_PATCH_SITE(CLOISTER_SITE_BRANCH, "\t.quad %l[cloister_on] - .\n", name) \
			: : "i"((initially) != 0) : : cloister_on); \
		cloister_taken = 0; \
	cloister_on: \
		(void)0; \
		cloister_taken; \
	})

/* Not 0 while a patch waits for safe points. It is made, with its note, where cloister_safepoint is first used, and has a cache line of its own. */
extern uint32_t cloister_patch_waits __attribute__((visibility("hidden")));

/*
 * Says that the calling thread is between two passes: no function on its stack would see a mixture of old and new code. Costs one load; while a
 * patch waits, a system call in which the patch is made. Threads that never say so hold up patches of several sites: see cloister_quiet.
 */
static __inline__ __attribute__((always_inline)) void cloister_safepoint(void)
{
	/* The word and its note form one group: the linker keeps one of each, and both or none. */
	__asm__ __volatile__(
		"\t.ifndef cloister_patch_waits\n"
		"\t.pushsection .bss.cloister_patch_waits,\"awG\",@nobits,cloister_patch_waits,comdat\n"
		"\t.weak cloister_patch_waits\n"
		"\t.hidden cloister_patch_waits\n"
		"\t.type cloister_patch_waits, @object\n"
		"\t.size cloister_patch_waits, 4\n"
		"\t.p2align 6\n"
		"cloister_patch_waits:\n"
		"\t.zero 64\n"
		"\t.popsection\n"
		CLOISTER_PATCH_NOTE("\"aG\",@note,cloister_patch_waits,comdat", CLOISTER_NOTE_SAFE_WORD, "\t.quad cloister_patch_waits - .\n")
		"\t.endif\n");
	if (__builtin_expect(__atomic_load_n(&cloister_patch_waits, __ATOMIC_ACQUIRE) != 0, 0))
		cloister_syscall2(CLOISTER_SYS_SAFEPOINT, CLOISTER_SAFEPOINT_HERE, 0);
}

/*
 * Declares the next instruction: a thread that is stopped at it may be patched there and then. Meant for the short loop in which a thread waits
 * for its next period; costs nothing.
 */
#define CLOISTER_SAFE_RIP() \
	__asm__ __volatile__("4340:\n" CLOISTER_PATCH_NOTE("\"a?\",@note", CLOISTER_NOTE_SAFE_RIP, "\t.quad 4340b - .\n") : : : "memory")

#endif
