/* patch.pml: stop, patch, serialise, resume (docs/ordering.md, O1 and O13; docs/patching.md).
 *
 * NV vCPU threads and one patcher that makes up to NSTOP stops. Words and labels are those of vcpu/stop.go, vcpu/park.go and patch/patcher.go: V2..V8 a vCPU
 * that parks, P1..P8 the patcher, E1 and E3 a vCPU that enters the guest, G1..G5 and S1, S2 safe points. One step here is one step there, with at
 * most one access to a word that others see, and prints its label: `spin -t` of a counter-example is a schedule for the real code (model/trails).
 *
 * Code is three bytes: two halves of instruction A, and instruction B; a pass executes A, then B. A processor may execute a byte as it
 * was at any moment since it last serialised. So may[v,k] is the set of values that byte k has had since v did: weaker than any processor, and it needs no front end
 * that copies and drops. How threads sleep and wake is model/stop.pml's. Memory is sequentially consistent, as there.
 *
 * Checked: I1 no torn instruction; I2 nobody in the guest from Stop's return to the resume; I3 nobody enters while anybody may hold a stale byte; I4 no
 * pass with two versions; I5 the text is one version, the committed one, at every resume; L1 a dead VM is never entered; with -DLIVE that the patcher gets through
 * all its stops and every vCPU runs again (weak fairness; who waits for ever is a deadlock, and found without -DLIVE). -DTORNONLY checks I1 alone.
 *
 * run: pass       -DNV=1 -DNSTOP=3 -DGIVEUP -DMISREAD   a stop may time out, what was stored may read back wrong
 * run: pass       -O1 -DNV=2 -DNSTOP=2 -DGIVEUP
 * run: pass       -DNV=2 -DMISREAD -DSTUCK   a resume may time out too: the VM is dead
 * run: pass       -DNV=1 -DNSTOP=3 -DGIVEUP -DHANDLER   the kick's signal never stays pending
 * run: pass       -DNV=1 -DNSTOP=3 -DGIVEUP -DLIVE
 * run: pass       -O1 -DNV=2 -DGIVEUP -DLIVE
 * run: pass       -DNV=1 -DNSTOP=3 -DGIVEUP -DHANDLER -DLIVE
 * run: pass       -DNV=1 -DNSTOP=3 -DGIVEUP -DHANDLER -DNOAGAIN
 * run: pass       -DNV=1 -DNSTOP=3 -DGIVEUP -DHANDLER -DNOAGAIN -DLIVE   V6's look at req saves a round; V8's and E1's are what is needed
 * run: pass       -DNV=1 -DNSTOP=2 -DNOIMM
 * run: pass       -DNV=1 -DNSTOP=2 -DNOIMM -DLIVE      a signal that stays pending is enough
 * run: tornbytes  -DNV=1 -DDEFERRED -DTORNONLY   written at once, each vCPU serialises at its next exit
 * run: tornbytes  -DNV=1 -DNOSYNC -DTORNONLY     stopped, written, resumed without a serialising instruction
 * run: tornbytes  -DNV=1 -DSYNCBEFORE -DTORNONLY   serialised when it stopped, before the stores
 * run: stale      -DNV=2 -DNOSYNC
 * run: in-guest   -DNV=1 -DNOWAIT                kicked, and not waited for
 * run: versions   -DNV=1 -DNOPLACE               nobody looks where a vCPU stands
 * run: starved    -DNV=1 -DHANDLER -DNOIMM -DLIVE  a kick without immediate_exit
 * run: starved    -DNV=1 -DNSTOP=2 -DHANDLER -DLATECLEAR -DLIVE  immediate_exit is cleared when the vCPU is let go
 * run: resumed    -DNV=2 -DSTUCK -DRESUMEDEAD    the resume timed out: the VM is called dead, and released
 * run: stale      -DNV=2 -DSTUCK -DRESUMELATE    the resume timed out: resumed all the same
 * run: memory     -DNV=1 -DMISREAD -DRESUMEDOUBT  text that could not be put back is resumed
 * run: memory     -DNV=1 -DMISREAD -DNOBACK      what reads back wrong is not put back
 * run: memory     -DNV=1 -DNSTOP=2 -DGIVEUP -DWRITELATE  a stop that timed out stores all the same
 *
 * ENTRY: A is the entry of a function, two NOPs that become one JMP, so a vCPU may stand inside it. Without safe points (RANDOM) a pass may see two versions.
 *
 * run: pass       -DNV=2 -DENTRY -DRANDOM -DTORNONLY
 * run: versions   -DNV=1 -DENTRY -DRANDOM
 * run: tornbytes  -DNV=1 -DENTRY -DRANDOM -DNORIP -DTORNONLY   nobody looks whether it stands inside
 *
 * WORD: threads come to their safe points when the word says so, and wait there outside the guest (O13). QUIET: one may be quiet, and change its mind.
 *
 * run: pass       -DNV=2 -DWORD -DGIVEUP
 * run: pass       -DNV=2 -DWORD -DQUIET -DNSTOP=2
 * run: pass       -DNV=1 -DWORD -DNSTOP=2 -DLIVE
 * run: pass       -DNV=2 -DWORD -DLIVE
 * run: versions   -DNV=2 -DWORD -DQUIET -DNOLOOK   not looked at again when all are stopped
 * run: tornbytes  -DNV=2 -DWORD -DSKIPHERE -DTORNONLY   who waits at a safe point is not stopped: it is outside anyway
 * run: deadlock   -DNV=1 -DWORD -DNOSCATTER   a thread waits at a safe point, and no one wakes it
 *
 * SYNC: the first vCPU writes code that nobody executes yet, asks for a stop of all (SysSync), and then tells the others.
 *
 * run: pass       -DNV=2 -DSYNC
 * run: pass       -DNV=2 -DSYNC -DLIVE
 * run: tornbytes  -DNV=2 -DSYNC -DNOSYNC -DTORNONLY
 * run: tornbytes  -DNV=2 -DSYNC -DKICKONLY -DTORNONLY   kicked, and not waited for
 *
 * LAST: the last vCPU to stop makes the stores, and the last to serialise releases all (decision 0020). ENDS: a vCPU's thread may end.
 *
 * run: pass       -DLAST -DNV=1 -DNSTOP=3 -DGIVEUP -DMISREAD -DSTUCK
 * run: pass       -O1 -DLAST -DNV=2 -DNSTOP=2 -DGIVEUP
 * run: pass       -O1 -DLAST -DNV=2 -DGIVEUP -DMISREAD -DSTUCK
 * run: pass       -O1 -DLAST -DNV=2 -DGIVEUP -DMISREAD -DENDS   who has ended takes nothing off an offer: the requester takes it
 * run: pass       -DLAST -DNV=1 -DNSTOP=3 -DGIVEUP -DHANDLER
 * run: pass       -DLAST -DNV=1 -DNSTOP=2 -DGIVEUP -DMISREAD -DSTUCK -DLIVE
 * run: pass       -DLAST -DNV=1 -DNSTOP=2 -DGIVEUP -DHANDLER -DLIVE
 * run: pass       -O1 -DLAST -DNV=2 -DGIVEUP -DLIVE
 * run: pass       -DLAST -DNV=2 -DENTRY -DRANDOM -DTORNONLY
 * run: in-guest   -DLAST -DNV=2 -DNSTOP=2 -DGIVEUP -DUNTAGGED   who read a request that was given up counts for the next one
 * run: in-guest   -DLAST -DNV=2 -DGIVEUP -DGIVEUPBLIND   who is late releases all, and does not look whose the stop is
 * run: deadlock   -DLAST -DNV=1 -DGIVEUP -DMISREAD -DLOOKONCE   who is late and finds that the last stores does not look again how it went
 * run: stale      -DLAST -DNV=2 -DGIVEUP -DMISREAD -DUNDONELATE   what the last stored and took back is released like a stop that stored nothing
 * run: versions   -DLAST -DNV=1 -DNEARBLIND      the last does not look whether somebody was near
 * run: tornbytes  -DLAST -DNV=1 -DENTRY -DRANDOM -DNEARBLIND -DTORNONLY
 * run: deadlock   -DLAST -DNV=1 -DNSTOP=2 -DGIVEUP -DSTUCK -DLOWERS   the last, held up while it releases all, lowers what the next stop has stored
 * run: pass       -DLAST -DNV=1 -DNSTOP=2 -DGIVEUP -DSTUCK -DRESEND   a kick may be sent again
 * run: pass       -O1 -DLAST -DNV=2 -DGIVEUP -DRESEND
 * run: spurious   -DLAST -DNV=1 -DRESEND -DRESENDBLIND   … whosever the stop is: the last may have let go who gets it
 * run: starved    -DLAST -DNV=1 -DLIVE -DNOTCOUNTED   the requester is not counted in: a stop may be over before its immediate_exit is stored
 * run: resumed    -DLAST -DNV=2 -DSTUCK -DOUTBLIND   the resume timed out: the VM is called dead, though the last has released all
 */
#ifndef NV
#define NV 2
#endif
#ifndef NSTOP
#define NSTOP 1
#endif
#define OLD 1
#define NEW 2            /* values are bits of a set */

/* Where a vCPU is; below V2 it runs. */
#define E1     0         /* looks at req */
#define RUN    1         /* E3: KVM_RUN polls immediate_exit */
#define ENTER  2         /* E3: and then signals, with interrupts off */
#define GUEST  3
#define OVER   4         /* its thread has ended */
#define V2     5
#define V3READ 6
#define V3ACK  7
#define V4     8
#define V5     9
#define V6CLEAR 10
#define V6AGAIN 11
#define V7DRAIN 12
#define V7SYNC  13
#define V8     14
#define V8LAST 15
#define CLEAR  16        /* only with LATECLEAR */
#define S2     17        /* calls SysSafepoint */
#define WAIT   18        /* its call is not answered yet */
#define V3TAKE 19        /* from here on only with LAST */
#define V3STORE 20
#define V3BACK 21
#define V3UNDO 22
#define V3MINE 23
#define V3DOUBT 24
#define V3GO   25
#define V7OUT  26
#define V7REL  27
#define V7OWED 28
byte at[NV] = E1;

byte req[NV], ack[NV], go_[NV], synced[NV], rel[NV];
bool quit[NV];
bool imm[NV];            /* kvm_run.immediate_exit */
bool sig[NV];            /* the kick's signal is pending */

byte mem[3] = OLD;       /* A's halves, and B */
byte may[NV * 3] = OLD;
#define MAY(i, k) may[(i) * 3 + (k)]
byte committed = OLD;

/* Where a vCPU is in its pass: before S1, before A, inside A (ENTRY), before B. */
#define TOP    0
#define ATA    1
#define INA    2
#define ATB    3
#if defined(WORD) || defined(SYNC)
#define BEGIN  TOP
#else
#define BEGIN  ATA
#endif
byte rip[NV] = BEGIN;

bool halted;            /* from Stop's return to the resume */
bool dead;
bool fin;                /* the patcher makes no more stops */
byte word, number;       /* O13: what the program sees; the patch that waits */
bool here[NV], quiet[NV];
bool called, answered;   /* SYNC: a stop is asked for, and was made */
bool use;                /* SYNC: the new code may be executed */

#ifdef LAST
/* Two words: one step looks at one of them, and changes it. Whose it is, */
#define OFFERED   1
#define MINE      2      /* the requester's */
#define LASTS     3      /* in: who came last stores */
#define DOUBT     4      /* in: neither the new nor the old reads back */
#define RELEASED  5      /* out: who came last has let all go */
#define CONDEMNED 6      /* out: the VM is dead */
byte in_gen, in_is, in_left;      /* of which stop, and how many have yet to come */
bool in_near;                     /* somebody stands where it must not */
byte out_gen, out_is, out_left;
byte nv;                          /* what is to be stored */
bool begun;                       /* the last has begun to */
#ifdef LOWERS
#define RAISED(x, g) (g)
#else
#define RAISED(x, g) (x > g -> x : g)
#endif
#endif

#if NV == 1
#define ALL(p) (p(0))
inline store(k, x) { mem[k] = x; MAY(0, k) = MAY(0, k) | x }
#else
#define ALL(p) (p(0) && p(1))
inline store(k, x) { mem[k] = x; MAY(0, k) = MAY(0, k) | x; MAY(1, k) = MAY(1, k) | x }
#endif
#ifdef ENDS
#define FRESH(i) (at[i] == OVER || MAY(i, 0) == mem[0] && MAY(i, 1) == mem[1] && MAY(i, 2) == mem[2])
#else
#define FRESH(i) (MAY(i, 0) == mem[0] && MAY(i, 1) == mem[1] && MAY(i, 2) == mem[2])
#endif
#define INGUEST(i) (at[i] == RUN || at[i] == ENTER || at[i] == GUEST)

inline serialise(v) { MAY(v, 0) = mem[0]; MAY(v, 1) = mem[1]; MAY(v, 2) = mem[2] }

/* KVM_RUN has returned EINTR. */
inline interrupted(v) {
#ifdef HANDLER
  sig[v] = false;
#else
  if :: req[v] == done -> sig[v] = false :: else fi;            /* spurious: drained; E1 looks again */
#endif
#ifdef RESEND
  assert(req[v] != done);                                       /* no exit for nothing */
#endif
  at[v] = E1
}

/* With LIVE the interrupt that carries a kick comes at once; else it takes its time. */
#ifdef LIVE
#define EXECUTES(v, p) (at[v] == GUEST && !sig[v] && rip[v] == p)
#else
#define EXECUTES(v, p) (at[v] == GUEST && rip[v] == p)
#endif
#define FIRST(v) MAY(v, 0)
#define SECOND(v) MAY(v, 1)
#define ONE(m) ((m) == OLD || (m) == NEW)

/* P3: where a vCPU must not stand. */
#if defined(WORD) && defined(NOLOOK)
#define UNSAFE(i) false
#elif defined(WORD)
#define UNSAFE(i) (!here[i] && !quiet[i])
#elif defined(NOPLACE) || (defined(RANDOM) && defined(NORIP))
#define UNSAFE(i) false
#elif defined(RANDOM)
#define UNSAFE(i) (rip[i] == INA)
#else
#define UNSAFE(i) (rip[i] != BEGIN)
#endif

/* Where a vCPU goes on behind a step that LAST has something to put behind. */
#ifdef LAST
#define READ    V3TAKE
#define DRAINED V7OUT
#define OUTSIDE(i) (!INGUEST(i))
#else
#define READ    V3ACK
#define DRAINED V7SYNC
#endif
#ifdef UNTAGGED
#define TAKES(g) (in_is == OFFERED && in_left)
#else
#define TAKES(g) (in_gen == g && in_is == OFFERED && in_left)
#endif

/* A step that comes once for each of n things. */
inline next(v, i, n, then) { i++; if :: i == n -> i = 0; at[v] = then :: else fi }

proctype vcpu(byte v) {
  byte done, g, ver; bool calls, whole, same, fresh;
#ifdef LAST
  byte k; bool out_of_guest, owed;
#endif
  do
  :: d_step { at[v] == E1 -> printf("V%d E1\n", v);
#ifdef HANDLER
       sig[v] = false;                                          /* a handler ran */
#endif
       if
       :: req[v] != done -> at[v] = V2
       :: req[v] == done && quit[v] -> at[v] = OVER
       :: else -> at[v] = RUN
       fi }
  :: d_step { at[v] == RUN -> printf("V%d E3 run\n", v);
#ifdef HANDLER
       sig[v] = false;                                          /* between E1 and the ioctl */
#endif
       if :: imm[v] -> interrupted(v) :: else -> at[v] = ENTER fi }
  :: d_step { at[v] == ENTER -> printf("V%d E3 enter\n", v);
       if
       :: sig[v] -> interrupted(v)
       :: else ->
          at[v] = GUEST;
#ifndef TORNONLY
          assert(!halted);                                     /* I2 */
          assert(!dead);                                        /* L1 */
#ifndef SYNC
          assert(mem[0] == committed && mem[1] == committed && mem[2] == committed);   /* I5 */
          fresh = ALL(FRESH); assert(fresh)                     /* I3 */
#endif
#endif
       fi }

  /* The guest: a kick, an exit of its own, an instruction. */
  :: d_step { at[v] == GUEST && sig[v] -> printf("V%d kicked\n", v); interrupted(v) }
#if defined(LIVE) && (defined(WORD) || defined(SYNC))
  /* A program that makes no progress of its own comes to no safe point. */
#elif defined(LIVE)
  :: d_step { at[v] == GUEST && !sig[v] -> printf("V%d exit\n", v); at[v] = E1 }
#else
  :: d_step { at[v] == GUEST -> printf("V%d exit\n", v); at[v] = E1;
#ifdef DEFERRED
       serialise(v)
#endif
     }
#endif

#ifdef ENDS
  :: d_step { at[v] == GUEST -> printf("V%d end\n", v); at[v] = OVER }
#endif

  /* A call that is not answered yet; a stop is looked for meanwhile (O3). */
  :: d_step { at[v] == WAIT && req[v] != done -> printf("V%d look\n", v); at[v] = V2 }
#ifdef SYNC
  :: d_step { at[v] == WAIT && req[v] == done && answered -> printf("V%d answered\n", v); calls = false; at[v] = E1 }
  :: d_step { v == 0 && EXECUTES(v, TOP) -> printf("V%d store 0\n", v); store(0, NEW); rip[v] = ATA }
  :: d_step { v == 0 && EXECUTES(v, ATA) -> printf("V%d store 1\n", v); store(1, NEW); rip[v] = INA }
  :: d_step { v == 0 && EXECUTES(v, INA) -> printf("V%d sync\n", v); called = true; calls = true; at[v] = WAIT; rip[v] = ATB }
  :: d_step { v == 0 && EXECUTES(v, ATB) && !use -> printf("V%d publish\n", v); use = true }
  :: d_step { v != 0 && EXECUTES(v, TOP) && use -> printf("V%d A %d %d\n", v, FIRST(v), SECOND(v));
       whole = (FIRST(v) == NEW && SECOND(v) == NEW); assert(whole) }
#else
#ifdef WORD
  :: d_step { at[v] == WAIT && req[v] == done && !here[v] -> printf("V%d S3\n", v); calls = false; at[v] = E1 }
  :: d_step { EXECUTES(v, TOP) && !quiet[v] -> printf("V%d S1\n", v); rip[v] = ATA; if :: word -> at[v] = S2 :: else fi }
  :: d_step { at[v] == S2 -> printf("V%d S2\n", v); if :: number -> here[v] = true; calls = true; at[v] = WAIT :: else -> at[v] = E1 fi }
#ifdef QUIET
  :: d_step { v == NV - 1 && EXECUTES(v, TOP) && !quiet[v] -> printf("V%d quiet\n", v); quiet[v] = true }
  :: d_step { v == NV - 1 && EXECUTES(v, TOP) && quiet[v] -> printf("V%d loud\n", v); quiet[v] = false; rip[v] = ATA }   /* S1 comes with the next pass */
#endif
#endif
#ifdef ENTRY
  :: d_step { EXECUTES(v, ATA) -> printf("V%d A %d %d\n", v, FIRST(v), SECOND(v));
       whole = (FIRST(v) == OLD || FIRST(v) == NEW && SECOND(v) == NEW); assert(whole);   /* I1: a NOP, or the JMP */
       ver = FIRST(v); rip[v] = (ver == OLD -> INA : ATB) }
  :: d_step { EXECUTES(v, INA) -> printf("V%d A2 %d\n", v, SECOND(v));
       whole = (SECOND(v) == OLD); assert(whole); rip[v] = ATB }
#else
  :: d_step { EXECUTES(v, ATA) -> printf("V%d A %d %d\n", v, FIRST(v), SECOND(v));
       whole = (FIRST(v) == SECOND(v) && ONE(FIRST(v))); assert(whole);                   /* I1 */
       ver = FIRST(v); rip[v] = ATB }
#endif
  :: d_step { EXECUTES(v, ATB) -> printf("V%d B %d\n", v, MAY(v, 2));
#ifndef TORNONLY
       same = (MAY(v, 2) == ver); assert(same);                 /* I4 */
#endif
       ver = 0; rip[v] = BEGIN }
#endif

  /* park. V2 completes what an exit left pending (model/stop.pml). */
  :: d_step { at[v] == V2 -> printf("V%d V2\n", v);
#ifdef SYNCBEFORE
       serialise(v);
#endif
       at[v] = V3READ }
  :: d_step { at[v] == V3READ -> printf("V%d V3 read\n", v); g = req[v]; at[v] = READ }
#ifdef LAST
  :: d_step { at[v] == V3TAKE -> printf("V%d V3 take\n", v);
       at[v] = V3ACK;
       if
       :: TAKES(g) ->
          in_left--;
#ifndef NEARBLIND
          in_near = in_near || UNSAFE(v);
#endif
          if
          :: in_left == 0 && !in_near ->
             in_is = LASTS; halted = true; begun = true; at[v] = V3STORE;
#ifndef TORNONLY
             out_of_guest = ALL(OUTSIDE); assert(out_of_guest); out_of_guest = false   /* I2 */
#endif
          :: else
          fi
       :: else
       fi }
  :: d_step { at[v] == V3STORE -> printf("V%d V3 store %d\n", v, k); store(k, nv); next(v, k, 3, V3BACK) }
  :: d_step { at[v] == V3BACK -> printf("V%d V3 read back\n", v); committed = nv; at[v] = V3GO }
#ifdef MISREAD
  :: d_step { at[v] == V3BACK -> printf("V%d V3 read back wrong\n", v); at[v] = V3UNDO }
  :: d_step { at[v] == V3UNDO -> printf("V%d V3 take back %d\n", v, k); store(k, committed); next(v, k, 3, V3MINE) }
  :: d_step { at[v] == V3MINE -> printf("V%d V3 mine\n", v); in_is = MINE; at[v] = V3ACK }
  :: d_step { at[v] == V3MINE -> printf("V%d V3 take back wrong\n", v); store(0, nv); at[v] = V3DOUBT }
  :: d_step { at[v] == V3DOUBT -> printf("V%d V3 doubt\n", v); in_is = DOUBT; dead = true; at[v] = V3ACK }
#endif
  :: d_step { at[v] == V3GO -> printf("V%d V3 go %d\n", v, k); go_[k] = RAISED(go_[k], g); owed = true; next(v, k, NV, V4) }   /* there is nothing that the requester could do */
#endif
  :: d_step { at[v] == V3ACK -> printf("V%d V3 ack\n", v); ack[v] = g; at[v] = V4 }
  :: d_step { at[v] == V4 && go_[v] >= g -> printf("V%d V4\n", v); at[v] = V5 }
  :: d_step { at[v] == V5 -> printf("V%d V5\n", v);
#if !defined(NOSYNC) && !defined(SYNCBEFORE)
       serialise(v);
#endif
       at[v] = V6CLEAR }
  :: d_step { at[v] == V6CLEAR -> printf("V%d V6 clear\n", v);
#ifndef LATECLEAR
       imm[v] = false;
#endif
       at[v] = V6AGAIN }
  :: d_step { at[v] == V6AGAIN -> printf("V%d V6 again\n", v);
#ifdef NOAGAIN
       at[v] = V7DRAIN
#else
       at[v] = (req[v] != g -> V3READ : V7DRAIN)
#endif
     }
  :: d_step { at[v] == V7DRAIN -> printf("V%d V7 drain\n", v); sig[v] = false; at[v] = DRAINED }
#ifdef LAST
  :: d_step { at[v] == V7OUT -> printf("V%d V7 out\n", v);
       at[v] = (owed -> V7OWED : V7SYNC);
       if
       :: out_gen == g && out_is == OFFERED && out_left ->
          out_left--;
          if
          :: out_left == 0 -> out_is = RELEASED; halted = false;
             at[v] = V7REL
          :: else
          fi
       :: else
       fi }
  :: d_step { at[v] == V7REL -> printf("V%d V7 rel %d\n", v, k); rel[k] = RAISED(rel[k], g); next(v, k, NV, (owed -> V7OWED : V7SYNC)) }
  :: d_step { at[v] == V7OWED -> printf("V%d V7 ack\n", v); ack[v] = g; owed = false; at[v] = V7SYNC }
#endif
  :: d_step { at[v] == V7SYNC -> printf("V%d V7 synced\n", v); done = g; synced[v] = g; at[v] = V8 }
  :: d_step { at[v] == V8 && (rel[v] >= g || req[v] != g) -> printf("V%d V8\n", v); at[v] = V8LAST }
  :: d_step { at[v] == V8LAST -> printf("V%d V8 last\n", v);
       if
       :: req[v] != g -> at[v] = V3READ
       :: else ->
          g = 0;
          if
          :: calls && !quit[v] -> at[v] = WAIT
          :: calls && quit[v] -> at[v] = OVER
#ifdef LATECLEAR
          :: !calls -> at[v] = CLEAR
#else
          :: !calls -> at[v] = E1
#endif
          fi
       fi }
#ifdef LATECLEAR
  :: d_step { at[v] == CLEAR -> printf("V%d clear\n", v); imm[v] = false; sig[v] = false; at[v] = RUN }
#endif
  :: at[v] == OVER -> break
  od
}

#define COMES(i) (here[i] || quiet[i])

#ifdef SKIPHERE
#define STOPS(i) (!skipped[i])
#else
#define STOPS(i) true
#endif

inline scatter() {
  d_step {
    printf("P G5\n"); word = 0; number = 0;
#ifndef NOSCATTER
    do :: i < NV -> here[i] = false; i++ :: else -> break od;
#endif
    i = 0
  }
}

proctype patcher() {
#ifdef LAST
  byte g, i; bool late, doubt, out_of_guest, bad, stored, sure, given;
#else
  byte g, i, nv; bool late, doubt, out_of_guest, bad;
#endif
#ifdef SKIPHERE
  bool skipped[NV];
#endif
  do
  :: g == NSTOP -> break
  :: g < NSTOP ->
     d_step { g++; nv = OLD + NEW - committed };
#ifdef DEFERRED
     d_step { printf("P P5 store 0\n"); store(0, nv) };
     d_step { printf("P P5 store 1\n"); store(1, nv) };
     d_step { printf("P P5 store 2\n"); store(2, nv) }
#else
#ifdef SYNC
     called;
#endif
#ifdef WORD
     if
     :: number == 0 -> d_step { printf("P G1\n"); number = g }; d_step { printf("P G2\n"); word = 1 }
     :: else
     fi;
     if
     :: d_step { ALL(COMES) -> printf("P G3\n") }
#ifdef GIVEUP
     :: printf("P G3 late\n"); break
#endif
     fi;
#endif
#ifdef LAST
     d_step {
       printf("P P1 offer\n");
       in_gen = g; in_is = OFFERED; in_near = false; begun = false;
#ifdef NOTCOUNTED
       in_left = NV;
#else
       in_left = NV + 1;                                        /* and the requester */
#endif
       out_gen = g; out_is = OFFERED; out_left = NV
     };
#endif
     do                                                         /* P1 */
     :: i == NV -> break
#ifdef SKIPHERE
     :: d_step { i < NV && here[i] -> skipped[i] = true; i++ }
     :: i < NV && !here[i] ->
#else
     :: i < NV ->
#endif
        d_step { printf("P P1 req %d\n", i); req[i] = g };
        d_step { printf("P P1 immediate_exit %d\n", i);
#ifndef NOIMM
          imm[i] = true
#endif
        };
        d_step { printf("P P1 signal %d\n", i); sig[i] = true; i++ }
     od;
     i = 0; late = false;
#ifdef LAST
#ifndef NOTCOUNTED
     d_step {
       printf("P P1 in\n");
       if :: in_is == OFFERED -> in_left-- :: else fi
     };
#endif
wait:
#endif
#if !defined(NOWAIT) && !defined(KICKONLY)
     do                                                         /* P2 */
     :: i == NV -> break
     :: d_step { i < NV && (ack[i] == g || at[i] == OVER || !STOPS(i)) -> printf("P P2 %d\n", i); i++ }
#ifdef RESEND
     :: d_step { i < NV && ack[i] != g && !given -> printf("P P2 resend %d\n", i);
          if :: in_is == OFFERED -> in_is = MINE; in_left = 0; in_near = false; given = true :: else fi
        };
        if
#ifdef RESENDBLIND
        :: d_step { true -> sig[i] = true }
#else
        :: d_step { given -> sig[i] = true }
        :: !given
#endif
        fi
#endif
#ifdef LAST
#ifdef GIVEUP
     :: d_step { i < NV && ack[i] != g && !sure -> printf("P P2 late %d\n", i); late = true }; break
#endif
#ifdef STUCK
     :: d_step { i < NV && ack[i] != g && sure -> printf("P P2 late %d\n", i); late = true }; break
#endif
#elif defined(GIVEUP)
     :: d_step { i < NV && ack[i] != g && STOPS(i) -> printf("P P2 late %d\n", i); late = true }; break
#endif
     od;
#endif
     i = 0;
#ifdef LAST
     if
     :: late && sure -> stored = true; goto resume              /* who stores comes to no end */
#ifdef GIVEUPBLIND
     :: late && !sure
     :: !late ->
#else
     :: !(late && sure) ->
#endif
        d_step {
          printf("P P2 mine\n");
          if
          :: in_is == OFFERED || given -> in_is = MINE; in_left = 0; in_near = false
#ifdef LOOKONCE
          :: in_is == LASTS -> stored = true; late = false
#endif
#ifdef UNDONELATE
          :: in_is == MINE && late -> halted = false
#endif
          :: else -> sure = late; stored = (in_is == LASTS && !late); doubt = (in_is == DOUBT && !late)
          fi
        };
        if
        :: sure -> late = false; goto wait                      /* all are out: how it went shows when they have acknowledged */
        :: stored -> goto served
        :: else -> d_step { printf("P out mine\n"); out_is = MINE; out_left = 0 }
        fi;
        if :: doubt -> goto letgo :: else fi
     fi;
#endif
     if
     :: late ->                                                 /* not one byte was stored */
#ifdef WRITELATE
        d_step { printf("P P5 store 0\n"); store(0, nv) };
#endif
        do
        :: i == NV -> break
        :: d_step { i < NV -> printf("P P8 %d\n", i); go_[i] = g; rel[i] = g; i++ }
        od
     :: !late ->
#ifndef SYNC
        d_step {
          printf("P P3\n");
          bad = false;
          do
          :: i < NV ->
#ifndef TORNONLY
             out_of_guest = !INGUEST(i); assert(out_of_guest);  /* I2 */
#endif
             bad = bad || (UNSAFE(i) && at[i] != OVER); i++
          :: else -> break
          od;
          i = 0; halted = true; out_of_guest = false
        };
        if
        :: bad -> bad = false                                   /* refused: resumed, and tried again */
        :: !bad ->
           d_step { printf("P P5 store 0\n"); store(0, nv) };
           d_step { printf("P P5 store 1\n"); store(1, nv) };
           d_step { printf("P P5 store 2\n"); store(2, nv) };
           if
           :: d_step { printf("P P5 read back\n"); committed = nv };
#ifdef WORD
              scatter()
#endif
#ifdef MISREAD
           :: printf("P P5 read back wrong\n");
#ifndef NOBACK
              d_step { printf("P P5 take back 0\n"); store(0, committed) };
              d_step { printf("P P5 take back 1\n"); store(1, committed) };
              d_step { printf("P P5 take back 2\n"); store(2, committed) };
              if
              :: printf("P P5 take back read\n")
              :: d_step { printf("P P5 take back wrong\n"); store(0, nv);
#ifndef RESUMEDOUBT
                   doubt = true; dead = true
#endif
                 }
              fi
#else
              skip
#endif
#endif
           fi
        fi;
#endif
#ifdef LAST
letgo:
#endif
        do
        :: i == NV -> break
        :: d_step { i < NV -> printf("P P6 %d\n", i); quit[i] = doubt; go_[i] = g; i++ }
        od;
        i = 0;
#ifdef LAST
served:
#endif
#ifndef KICKONLY
        do
        :: i == NV -> break
        :: d_step { i < NV && (synced[i] == g || at[i] == OVER || !STOPS(i)) -> printf("P P7 %d\n", i); i++ }
#ifdef STUCK
        :: d_step { i < NV && synced[i] != g -> printf("P P7 late %d\n", i); late = true }; break
#endif
        od;
#endif
        i = 0;
#ifdef LAST
resume:
        if
        :: stored ->
           d_step {
             printf("P P8 mine\n");
             if
             :: out_is == OFFERED -> assert(!late || begun); out_is = (late -> CONDEMNED : MINE); halted = false; dead = late
#ifdef OUTBLIND
             :: out_is == RELEASED && late -> dead = true
#endif
             :: else -> i = NV                                  /* released */
             fi;
             out_left = 0
           };
           if
           :: i == NV && late -> late = false; i = 0            /* it may not have got far: all are let go from here, too */
           :: else
           fi
        :: else -> d_step { halted = false; dead = dead || late }
        fi;
#else
        d_step {
          halted = false;
#ifndef RESUMELATE
          dead = dead || late
#endif
        };
#endif
        do
        :: i == NV -> break
#ifndef RESUMEDEAD
#ifdef LAST
        :: d_step { i < NV && dead -> printf("P P8 condemn %d\n", i); quit[i] = true; go_[i] = g; rel[i] = g; i++ }
#else
        :: d_step { i < NV && dead -> printf("P P8 condemn %d\n", i); quit[i] = true; rel[i] = g; i++ }
#endif
        :: d_step { i < NV && !dead -> printf("P P8 %d\n", i); rel[i] = g; i++ }
#else
        :: d_step { i < NV -> printf("P P8 %d\n", i); rel[i] = g; i++ }
#endif
        od;
        if :: dead -> break :: else fi
     fi;
     i = 0;
#ifdef LAST
     stored = false; sure = false; given = false;
#endif
#ifdef SYNC
     answered = true
#endif
#endif
  od;
  i = 0;
#ifdef WORD
  if :: number -> scatter() :: else fi;
#endif
  fin = true
}

init { atomic {
  byte i;
  do :: i < NV -> run vcpu(i); i++ :: else -> break od;
  run patcher() } }

#ifdef LIVE
#ifdef LAST
#define RUNS(i) (at[i] <= OVER && !imm[i])   /* else KVM_RUN returns for ever */
#else
#define RUNS(i) (at[i] <= OVER)
#endif
ltl done { <> [] (fin && ALL(RUNS)) }
#endif
