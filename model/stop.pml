/* stop.pml: kick, stop and resume of vCPU threads, and the hand-over of exits (docs/ordering.md, O1 and O3).
 *
 * The words are those of vcpu/control_unsafe.go and vcpu/loop.go, the labels V1..V8 and P1..P8 those of the
 * proof. NV vCPUs, one requester that makes ROUNDS stops (the last may end the threads), a server for each
 * vCPU. Three things that nothing may rely on are chosen freely: a guest may spin for ever from any entry on,
 * a system call may block for ever in the server, and an exit of the guest's own may come at any moment.
 * So a lost kick or a lost wake-up is a deadlock, which the safety search finds.
 *
 * Memory is sequentially consistent here: every store of a word of the protocol is an XCHG or a LOCK ADD
 * (raw_amd64.s, sync/atomic), so no store buffer can be seen. A futex word that only grows is modelled by
 * what one sleeper can tell of it: whether it changed since that sleeper took its value.
 *
 * Checked: I2, no vCPU enters the guest between Stop and Resume, and none is in it when Stop returns; I3, a
 * vCPU enters only when every vCPU has serialised after the latest change; End, none enters after quit; no
 * deadlock; and with -DLIVE that the requester gets through all its rounds (weak fairness).
 *
 * model/run checks each line; `pass` or the error that it must find.
 *
 * run: pass
 * run: pass       -O1 -DLIVE
 * run: pass       -DLIVE -DSPIN       the guest never leaves by itself
 * run: pass       -O1 -DGIVEUP            a stop may time out at any moment
 * run: pass       -DLIVE -DSPIN -DGIVEUP
 * run: pass       -O1 -DOPS               Go has an ioctl executed on the vCPU's thread while it serves
 * run: pass       -DNV=2 -DROUNDS=1 -DSPIN  two vCPUs whose guests spin
 * run: pass       -DNV=2 -DROUNDS=1 -DSPIN -DGIVEUP
 * run: pass       -DHANDLER           the signal never stays pending: immediate_exit alone is enough
 * run: pass       -DNOIMM             no immediate_exit: the pending signal alone is enough
 * run: deadlock   -DHANDLER -DNOIMM   neither: the kick falls between E1 and KVM_RUN (race K1)
 * run: deadlock   -DDRAINLATE         signal drained and immediate_exit cleared behind the last look at req
 * run: starved    -DCLEARREQ -DLIVE   the vCPU clears the request word when it has served it (race K3)
 * run: starved    -DRETRY -DLIVE      EINTR re-enters KVM_RUN without a look at req
 * run: deadlock   -DNORECHECK         no look at the word between taking the bell's value and sleeping
 * run: deadlock   -DVALUELATE         the bell's value is taken behind the last look at the word
 * run: deadlock   -DWORDLAST          the vCPU's bell is rung before req is written
 * run: deadlock   -DHANDLAST          the server's bell is rung before hand is written (O3)
 * run: in-guest   -DACKEARLY          the acknowledgement is given while KVM_RUN may still be entered
 * run: stale      -DNOSYNC            a vCPU enters without having serialised after the last change
 * run: stale      -DNOBARRIER -DNV=2 -DROUNDS=1 -DSPIN  a vCPU is released before the others have serialised
 * run: entered    -DQUITLATE          quit is written behind rel
 * run: pass       -O1 -DDIES              a vCPU's thread dies (K5): who kicks it finds out, and no vCPU enters again
 * run: pass       -DDIES -DNV=2 -DROUNDS=1 -DSPIN
 * run: pass       -DLIVE -DDIES -DSPIN
 * run: deadlock   -DDIES -DNOBURY         nobody ends its affairs: who serves it waits for its next exit for ever
 * run: entered    -DDIES -DDIESON -DNV=2 -DROUNDS=1 -DSPIN  the stop is given up as if it were late: the others run on
 * run: entered    -DDIES -DASKEDONLY -DNV=2 -DROUNDS=1 -DSPIN  who was not asked to stop yet is not asked any more
 */
#ifndef NV
#define NV 1
#endif
#ifndef ROUNDS
#define ROUNDS 2
#endif

byte req[NV], ack[NV], go_[NV], synced[NV], rel[NV];
bool quit[NV], ended[NV];
bool imm[NV];            /* kvm_run.immediate_exit */
bool sig[NV];            /* the kick signal is pending on the thread */
bool bell[NV] = true;           /* rung since the vCPU took its value */
bool sleepBell[NV];
bool asleep[NV];         /* the vCPU is in futexWait(bell) */
bool doorAck[NV] = true;        /* rung since the requester took its value */
bool sleepAck[NV];
bool rasleep;            /* the requester is in futexWait(doorAck) */
bool doorReq[NV] = true;        /* rung since the server took its value */
bool sleepReq[NV];
bool sasleep[NV];        /* the server is in futexWait(doorReq) */

#define IDLE   0
#define POSTED 1
#define OP     2
#define OPDONE 3
#define DONE   4
byte hand[NV];

bool guest[NV];          /* in guest mode */
bool stopped;            /* between Stop's return and Resume */
bool over;               /* every vCPU may run on, for the last time to end */
bool fin;                /* the requester makes no more stops */
bool gone[NV], died;     /* the thread is no more: one of them, at most */
bool lost;               /* … and whoever kicked it knows */
#define UNSEEN(i) (fin && gone[i] && !lost)  /* nobody will kick it: its server waits as long as the VM is there */
bool blocked[NV];        /* the server serves for ever */
byte changed;            /* generation of the latest change to the stopped guest */
byte serial[NV];         /* what each vCPU has serialised for */

#define SERIAL_0 (serial[0] >= changed)
#if NV == 1
#define SERIALISED SERIAL_0
#else
#define SERIALISED (SERIAL_0 && serial[1] >= changed)
#endif

inline ring(i) {         /* Thread.ring, and its wake */
  bell[i] = true;
  if :: sleepBell[i] -> asleep[i] = false :: else fi
}
inline answer(i) {       /* answerBell */
  doorAck[i] = true;
  if :: sleepAck[i] -> rasleep = false :: else fi
}
inline knock(i) {
  doorReq[i] = true;
  if :: sleepReq[i] -> sasleep[i] = false :: else fi
}

/* Sleeps until rung unless cond holds: value, flag, word, futex; each step may be the place of a fault. */
#ifdef VALUELATE
#define TAKE_EARLY(rung)
#define TAKE_LATE(rung) rung = false;
#else
#define TAKE_EARLY(rung) rung = false;
#define TAKE_LATE(rung)
#endif
#ifdef NORECHECK
#define NEWS(cond) false
#else
#define NEWS(cond) cond
#endif
inline sleep_unless(rung, flag, sleeping, cond, alone) {
  TAKE_EARLY(rung)                                              /* the futex word's value */
  flag = true;
  if
  :: NEWS(cond) -> skip
  :: !NEWS(cond) ->
     TAKE_LATE(rung)
     atomic { if :: !rung -> sleeping = true :: else fi };      /* futex(2) compares and sleeps in one */
     if :: !sleeping :: alone -> sleeping = false fi            /* alone: a deadline, or nobody is left to wake it */
  fi;
  d_step { flag = false; rung = true }                          /* of no meaning until it is taken again */
}

/* A thread may be killed wherever it owes nobody a word. */
#ifdef DIES
#define DIE :: atomic { !died && !fin -> died = true; gone[i] = true; guest[i] = false; goto dead }
#else
#define DIE
#endif

proctype vcpu(byte i) {
  byte done = 0, g; bool spins, early;
top:
  if DIE :: skip fi;
  if :: req[i] != done -> goto park :: else fi;                /* E1 */
  if :: quit[i] -> goto over_ :: else fi;
#ifdef DRAINLATE
  imm[i] = false; sig[i] = false;
#endif
kvmrun: skip;                                                   /* E3 */
#ifdef HANDLER
  if :: sig[i] -> sig[i] = false :: else fi;                    /* a handler ran before the ioctl */
#endif
  if :: imm[i] -> goto intr :: else fi;                         /* polled once, early in KVM_RUN */
  atomic {
    if
    :: sig[i] -> goto intr                                      /* signals are looked at with interrupts off */
    :: else ->
       assert(!stopped);                                        /* I2 */
#ifndef ACKEARLY
       assert(SERIALISED);                                      /* I3 */
#endif
       assert(!over);                                           /* End */
       guest[i] = true;
#ifdef SPIN
       spins = true
#else
       if :: spins = true :: spins = false fi
#endif
    fi
  };
  if
  :: sig[i] -> d_step { guest[i] = false; spins = false }; goto intr  /* the kick's interrupt */
  :: !spins -> guest[i] = false; goto post                      /* an exit of the guest's own */
  :: spins && fin && !sig[i] -> assert(!over); guest[i] = false; goto over_  /* and so for ever */
  DIE
  fi;
intr:
#ifdef HANDLER
  sig[i] = false;                                               /* consumed on the way out */
#endif
#ifdef RETRY
  goto kvmrun;
#endif
  if :: req[i] == done -> sig[i] = false :: else fi;            /* spurious: drained; E1 looks again */
  goto top;
post:                                                           /* X4 */
#ifdef HANDLAST
  knock(i); hand[i] = POSTED;
#else
  hand[i] = POSTED; knock(i);
#endif
wait:
  if
  :: req[i] != done -> goto park
  :: req[i] == done && hand[i] == DONE -> hand[i] = IDLE; goto top
#ifdef OPS
  :: req[i] == done && hand[i] == OP ->
     imm[i] = false;                                            /* complete, then the ioctl */
     hand[i] = OPDONE; knock(i)
#endif
  :: fin && blocked[i] -> goto over_
  :: req[i] == done && hand[i] != DONE && hand[i] != OP ->
     sleep_unless(bell[i], sleepBell[i], asleep[i], (hand[i] == DONE || hand[i] == OP || req[i] != done), (fin && blocked[i]))
  fi;
  goto wait;

park:
  imm[i] = false;                                               /* V2: complete pending I/O; may eat a kicker's */
again:
  g = req[i];
  ack[i] = g; answer(i);                                        /* V3 */
#ifdef ACKEARLY
  done = g; goto kvmrun;
#endif
#ifndef DRAINLATE
  if :: sig[i] = false; early = true :: skip fi;                /* V3: drained here if it was sent by now … */
#endif
  do
  :: go_[i] >= g -> break                                       /* V4 */
  :: else -> sleep_unless(bell[i], sleepBell[i], asleep[i], (go_[i] >= g || req[i] != g), false)
  od;
#ifndef NOSYNC
  serial[i] = changed;                                          /* V5 */
#endif
#ifndef DRAINLATE
  imm[i] = false;                                               /* V6 */
#endif
  if :: req[i] != g -> goto again :: else fi;                   /* V2' */
#ifndef DRAINLATE
  if :: sig[i] = false :: early -> skip fi; early = false;      /* V7 … and then not again: free here, by a count in the code */
#endif
  done = g; synced[i] = g; answer(i);
#ifdef CLEARREQ
  req[i] = 0; done = 0;
#endif
  do
  :: rel[i] >= g || req[i] != g -> break                        /* V8 */
  :: else -> sleep_unless(bell[i], sleepBell[i], asleep[i], (rel[i] >= g || req[i] != g), false)
  od;
  if :: req[i] != done -> goto again :: else g = 0 fi;
  if
  :: hand[i] == IDLE -> goto top                                /* from E1 */
  :: hand[i] != IDLE && quit[i] -> goto over_                   /* from X4 */
  :: else -> goto wait
  fi;

over_:
  ended[i] = true; knock(i); answer(i);
dead: skip
}

/* Go serves an exit: at once, after an ioctl on the vCPU's thread, or never. */
proctype server(byte i) {
next:
  do
  :: hand[i] == POSTED -> break
  :: hand[i] != POSTED && (ended[i] || UNSEEN(i)) -> goto finished
  :: else ->
     sleep_unless(doorReq[i], sleepReq[i], sasleep[i], (hand[i] == POSTED || ended[i]), UNSEEN(i))
  od;
  if
  :: blocked[i] = true; goto finished
  :: skip
#ifdef OPS
  :: hand[i] = OP; ring(i);
     do
     :: hand[i] == OPDONE -> break
     :: hand[i] != OPDONE && ended[i] -> goto finished
     :: else -> sleep_unless(doorReq[i], sleepReq[i], sasleep[i], (hand[i] == OPDONE || ended[i]), false)
     od
#endif
  fi;
  hand[i] = DONE; ring(i);
  goto next;
finished: skip
}

#ifdef GIVEUP
#define MAYBE mayGiveUp
#elif defined(DIES)
#define MAYBE (mayGiveUp && gone[i])  /* a kick is sent again now and then */
#else
#define MAYBE false
#endif

/* ESRCH of vCPU i's kick: Set.died. */
inline bury(i) {
  if
  :: gone[i] && !ended[i] ->
     lost = true;
#ifndef NOBURY
     ended[i] = true; knock(i)
#endif
  :: else
  fi
}

/* Set.outlive: no vCPU enters again, also none that was not asked yet. */
inline outlive() {
  i = 0;
  do
  :: i < NV ->
#ifndef DIESON
     quit[i] = true;
#endif
     go_[i] = g; rel[i] = g; ring(i); i++
  :: else -> break
  od;
#if !defined(DIESON) && !defined(ASKEDONLY)
  i = 0;
  do
  :: i < NV -> if :: req[i] != g -> req[i] = g; imm[i] = true; ring(i); sig[i] = true :: else fi; i++
  :: else -> break
  od;
#endif
  over = true
}

/* P2, P7: waits until word_is holds for every vCPU i, or late. */
inline await(word_is) {
  i = 0;
  do
  :: late || i == NV -> break
  :: !late && i < NV && (word_is || ended[i]) -> i++
  :: !late && i < NV && !(word_is || ended[i]) ->
     sleep_unless(doorAck[i], sleepAck[i], rasleep, (word_is || ended[i]), MAYBE)
#ifdef GIVEUP
     ; if :: mayGiveUp && !(word_is) -> late = true :: skip fi
#elif defined(DIES)
     ; if :: mayGiveUp -> bury(i); late = lost :: else fi
#endif
  od
}

proctype requester() {
  byte g = 0, i; bool late, last, mayGiveUp;
  do
  :: g < ROUNDS ->
     g++; late = false;
     i = 0;
     do
     :: i < NV ->                                               /* P1 */
#ifdef WORDLAST
        ring(i); req[i] = g;
#else
        req[i] = g;
#endif
#ifndef NOIMM
        imm[i] = true;
#endif
#ifndef WORDLAST
        ring(i);
#endif
        sig[i] = true;
#ifdef DIES
        bury(i);
        if :: lost -> outlive(); goto finished :: else fi;
#endif
        i++
     :: else -> break
     od;
     mayGiveUp = true; await(ack[i] == g); mayGiveUp = false;           /* P2 */
     last = false;
#ifdef DIES
     if :: lost -> outlive(); goto finished :: else fi;
#endif
     if
     :: late -> i = 0; do :: i < NV -> go_[i] = g; rel[i] = g; ring(i); i++ :: else -> break od
     :: else ->
        i = 0; do :: i < NV -> assert(!guest[i]); i++ :: else -> break od;
        stopped = true;
        changed = g;                                            /* whatever the stop was for */
        stopped = false;
        if :: g == ROUNDS -> last = true :: true fi;
        i = 0;
        do
        :: i < NV ->                                            /* P6 */
#ifndef QUITLATE
           if :: last -> quit[i] = true :: else fi;
#endif
           go_[i] = g; ring(i); i++
        :: else -> break
        od;
#ifndef NOBARRIER
        await(synced[i] == g);                                          /* P7 */
#endif
        over = last;
        i = 0; do :: i < NV -> rel[i] = g; ring(i); i++ :: else -> break od;  /* P8 */
#ifdef QUITLATE
        i = 0; do :: i < NV -> if :: last -> quit[i] = true; ring(i) :: else fi; i++ :: else -> break od
#endif
     fi;
     if :: last -> break :: else fi
  :: true -> break
  od;
finished:
  fin = true
}

init { atomic {
  byte i = 0;
  do
  :: i < NV -> run vcpu(i); i++
  :: else -> break
  od;
#ifndef SPIN
  i = 0; do :: i < NV -> run server(i); i++ :: else -> break od;
#endif
  run requester() } }

#ifdef LIVE
ltl done { <> (requester@finished) }
#endif
