/* ring.pml: a ring of records between one producer and one consumer (docs/ordering.md, O11).
 *
 * The words are those of guest/abi/ring.go, the labels P1..P4 and C1..C4 those of the proof. A record is two
 * cells, written and read one after the other; SLOTS of them fit, and RECORDS pass, so every slot is used again.
 * Memory is sequentially consistent here: the protocol needs stores in order, loads in order and a load before a
 * later store in order, which x86 gives; each variant below takes one of these away.
 *
 * With -DHOSTILE the producer writes what it likes, whenever it likes, and the consumer is checked alone.
 *
 * Checked: each record is whole and the next one; none is missing at the end; no deadlock; with -DLIVE that the
 * consumer gets to the end (weak fairness); HOSTILE: what is copied lies within what one look at Head allowed.
 *
 * model/run checks each line; `pass` or the error that it must find.
 *
 * run: pass
 * run: pass       -DLIVE
 * run: pass       -DSLOTS=1 -DRECORDS=4
 * run: pass       -DSLOTS=3 -DRECORDS=7
 * run: torn       -DPUBLISHEARLY      Head is stored before the record is written
 * run: torn       -DFREEEARLY         Tail is stored before the record is copied
 * run: torn       -DNOROOM            the producer does not look whether there is room
 * run: lost       -DCLOSEDLATE        Closed is loaded behind Head
 * run: lost       -DCLOSEEARLY        Closed is stored before the last record is published
 * run: deadlock   -DNOPUBLISH         the last record is never published, nor the end
 * run: pass       -O1 -DHOSTILE
 * run: outside    -DHOSTILE -DTWICE      the length is loaded again behind the check
 * run: outside    -O1 -DHOSTILE -DHEADTWICE  Head is loaded again behind the check
 * run: outside    -DHOSTILE -DTRUST      the length is not checked
 */
#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef RECORDS
#define RECORDS 5
#endif

byte head, tail;         /* RingHeader.Head and Tail, in records; HOSTILE: in cells */
bool closed;
bool finished;           /* the consumer saw the end, or an error */

#ifndef HOSTILE

byte length[SLOTS], bytes[SLOTS];   /* the two cells of a record */

proctype producer() {
  byte own = 0, known = 0;         /* private: Head, and the latest look at Tail */
  do
  :: own < RECORDS ->
#ifndef NOROOM
     do
     :: own - known < SLOTS -> break
     :: own - known >= SLOTS -> tail != known; known = tail            /* P1; full: it tries again */
     od;
#endif
#ifdef PUBLISHEARLY
     head = own + 1;
#endif
#ifdef CLOSEEARLY
     if :: own + 1 == RECORDS -> closed = true :: else fi;
#endif
     length[own % SLOTS] = own + 1;                                    /* P2 */
     bytes[own % SLOTS] = own + 1;
     own++;
#ifdef NOPUBLISH
     if :: own == RECORDS -> goto out :: else fi;
#endif
     head = own                                                        /* P3 */
  :: else -> break
  od;
  closed = true;                                                       /* P4 */
out: skip
}

proctype consumer() {
  byte taken = 0, h = 0, want, a, b;     /* private: Tail, and the latest look at Head */
  bool end;
  do
  :: h != taken ->
     want = taken + 1;
#ifdef FREEEARLY
     tail = want;
#endif
     a = length[taken % SLOTS];                                        /* C3 */
     b = bytes[taken % SLOTS];
     assert(a == want && b == want);
     taken = want;
     tail = taken;                                                     /* C4 */
     a = 0; b = 0
  :: h == taken ->
#ifdef CLOSEDLATE
     h = head; end = closed;
#else
     end = closed;                                                     /* C1 */
     h = head;                                                         /* C2 */
#endif
     if
     :: h == taken && end -> break
     :: h == taken && !end -> (head != taken || closed)     /* it polls on: where something can change */
     :: else -> end = false
     fi
  od;
  assert(taken == RECORDS);
  finished = true
}

#else

#define CELLS 4
#define WILD  6          /* the producer's words have any value below it */
byte cell[CELLS];

proctype producer() {
  byte i;
  do
  :: select(i : 0 .. WILD); head = i
  :: select(i : 0 .. WILD); cell[0] = i
  :: select(i : 0 .. WILD); cell[1] = i
  :: finished -> break
  od
}

proctype consumer() {
  byte own = 0, h, words, n = 0;
  do
  :: n < 3 ->
     n++;
     h = head;                                                         /* C2 */
     if :: h - own > CELLS || h < own -> break :: else fi;              /* ErrCorrupt */
#ifdef HEADTWICE
     h = head;
#endif
     if
     :: h == own -> skip
     :: else ->
        words = cell[own % CELLS] + 1;                                 /* C3 */
#ifndef TRUST
        if :: words > h - own -> break :: else fi;
#endif
#ifdef TWICE
        words = cell[own % CELLS] + 1;
#endif
        assert(words <= h - own && h - own <= CELLS);
        own = own + words;
        words = 0
     fi
  :: else -> break
  od;
  finished = true
}

#endif

init { atomic { run producer(); run consumer() } }

#ifdef LIVE
ltl done { <> finished }
#endif
