/* attend.pml: a signal for a thread whose vCPU may be anywhere (docs/ordering.md, O10). The words are those of
 * vcpu/control_unsafe.go, the labels A0..A3 and B1..B3 those of the proof.
 *
 * The stop protocol itself is stop.pml's: here a request is one step, `req` and `kick` (immediate_exit and the pending
 * signal, of which stop.pml shows that either suffices), and `go` and `release` are there in advance. Two requesters send
 * a signal each; the server serves system calls of the vCPU and looks at what is pending before it answers (Exit.Seen).
 * The guest may spin for ever from any entry on, so a signal that is not seen is a deadlock.
 *
 * model/run checks each line; `pass` or the error that it must find.
 *
 * run: pass
 * run: pass       -DLIVE -DSPIN       (with system calls the lock would have to be fair)
 * run: pass       -DSPIN              the guest makes no system call at all
 * run: deadlock   -DATTNLATE          A1 behind A2: the vCPU parks, finds no attention asked for, and enters
 * run: deadlock   -DCLEARLATE         B2 behind B3: an attention that came in between is wiped
 * run: deadlock   -DSEENEARLY         the server takes the attention back without looking
 */
#define N 2

bool pending, attn, kick, locked;
byte req, sent;

inline lock()   { atomic { !locked -> locked = true } }
inline unlock() { locked = false }

proctype requester()
{
	lock();			/* the kernel's lock */
	pending = true;		/* A0 */
#ifdef ATTNLATE
	d_step { req++; kick = true };
	attn = true;
#else
	attn = true;		/* A1 */
	d_step { req++; kick = true };	/* A2, A3 */
#endif
	unlock();
	sent++
}

active proctype vcpu()
{
	byte done;
enter:
	do			/* E1 */
	:: req != done -> d_step { done = req; kick = false }
	:: else -> break
	od;
	if			/* B1 */
	:: attn ->
#ifndef CLEARLATE
		attn = false;	/* B2 */
#endif
		lock();		/* B3: Go looks */
		pending = false;
		unlock();
#ifdef CLEARLATE
		attn = false;
#endif
		goto enter
	:: else
	fi;
	do			/* E3: in the guest */
	:: kick -> goto enter
	:: sent == N && !pending -> break
#ifndef SPIN
	:: sent < N ->		/* a system call */
		lock();
#ifdef SEENEARLY
		attn = false;
		if :: true :: pending = false fi;
#else
		pending = false;
		attn = false;	/* Seen */
#endif
		unlock();
		goto enter
#endif
	od
}

init { run requester(); run requester() }

#ifdef LIVE
ltl seen { <> (sent == N && !pending) }
#endif
