/* ringcall.pml: system calls by the ring (docs/ordering.md, O12). The words are those of guest/stub/ring.go, the
 * labels G1..G4 and S1..S4 those of the proof.
 *
 * The guest makes CALLS calls, each with an argument of its own. The server answers with that argument, or says that the
 * call has to be made by an exit. Memory is sequentially consistent here: x86 keeps the order of stores and that of
 * loads, and the protocol asks for no more; each broken variant swaps two of them.
 *
 * Checked: the result that the guest goes on with is that of this call, made once; no deadlock; every call is answered.
 *
 * model/run checks each line; `pass` or the error that it must find.
 *
 * run: pass
 * run: pass       -DLIVE
 * run: mixed      -DPOSTFIRST         G2 before G1: a call with the arguments of the one before
 * run: mixed      -DDONEFIRST         S4 before S3: the guest goes on with the result of the one before
 * run: mixed      -DREADFIRST         S2 before S1: arguments taken before it is known that there are any
 */
#define CALLS 3

byte arg, posted, done, result, byexit, made;
bool finished;

inline answer()
{
	if
	:: result = a; byexit = 0; made++
	:: byexit = 1
	fi
}

active proctype guest()
{
	byte n = 1, before;
	do
	:: n <= CALLS ->
		before = made;
#ifdef POSTFIRST
		posted++;
		arg = n;
#else
		arg = n;			/* G1 */
		posted++;			/* G2 */
#endif
		(done == posted);		/* G3 */
		if				/* G4 */
		:: byexit == 0 -> d_step { bool mine = (result == n && made == before + 1); assert(mine) }
		:: else
		fi;
		n++
	:: else -> break
	od;
	finished = true
}

active proctype server()
{
	byte served, n, a;
end:	do
	:: atomic { posted != served -> n = posted };	/* S1 */
#ifndef READFIRST
		a = arg;			/* S2 */
#endif
#ifdef DONEFIRST
		done = n;
		answer();
#else
		answer();			/* S3 */
		done = n;			/* S4 */
#endif
		served = n;
#ifdef READFIRST
		a = arg;
#endif
	od
}

#ifdef LIVE
ltl answered { <> finished }
#endif
