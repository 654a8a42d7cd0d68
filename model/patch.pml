/* patch.pml: stop, patch, serialise, resume (docs/ordering.md, O1; docs/patching.md).
 *
 * NV vCPU threads and one patcher that makes NPATCH patches of two sites. The words are those of vcpu/stop.go and
 * vcpu/park.go. The front end of each vCPU is a process of its own that may copy code bytes into a stale buffer at any moment, and
 * loses them only by serialisation or by chance: weaker than any processor. How threads sleep and wake is model/stop.pml's.
 *
 * Checked: I1 no torn instruction, I2 nobody in the guest while bytes are written, I4 no pass with two versions, I5 memory is the
 * committed version at every resume; with -DLIVE that every round ends (weak fairness).
 *
 * run: pass       -DNV=1 -DNPATCH=2
 * run: pass       -DNPATCH=1
 * run: pass       -DNV=1 -DNPATCH=3 -DGIVEUP   a stop may time out at any moment
 * run: pass       -DNPATCH=1 -DGIVEUP
 * run: pass       -DNV=1 -DNPATCH=2 -DLIVE
 * run: pass       -DNV=1 -DNPATCH=2 -DLIVE -DGIVEUP
 * run: tornbytes  -DNV=1 -DNPATCH=1 -DDEFERRED -DTORNONLY   written at once, each vCPU serialises at its next exit
 * run: tornbytes  -DNPATCH=1 -DNOSYNC -DTORNONLY     stopped, written, resumed without a serialising instruction
 * run: tornbytes  -DNPATCH=1 -DSYNC_BEFORE -DTORNONLY  serialised when it stopped, before the stores
 * run: versions   -DNPATCH=1 -DNOMID                 no look at where the vCPU stands
 * run: starved    -DNV=1 -DNPATCH=2 -DNOIMM -DLIVE   a kick without immediate_exit
 * run: starved    -DNV=1 -DNPATCH=2 -DLATE_CLEAR -DLIVE  immediate_exit cleared when the vCPU is let go
 */
#ifndef NV
#define NV 2
#endif
#ifndef NPATCH
#define NPATCH 2
#endif
#define OLD 0
#define NEW 1

mtype = { USER, KCHECK, GUEST, PARKED };   /* where a vCPU thread is */

/* --- shared control words (all accesses are release/acquire or stronger) --- */
byte req[NV];        /* stop request generation, 0 = none            */
byte ack[NV];        /* vCPU -> patcher: parked for generation g     */
byte go = 0;         /* patcher -> vCPUs: bytes are final, serialise */
byte synced[NV];     /* vCPU -> patcher: serialised for generation g */
byte rel = 0;        /* patcher -> vCPUs: enter the guest again      */
bool immexit[NV];    /* kvm_run.immediate_exit                       */
bool sig[NV];        /* signal pending on the vCPU thread            */
mtype st[NV];

/* --- code bytes: two halves of one instruction (A) and one more insn (B) --- */
byte mem[3];         /* 0,1 = halves of insn A ; 2 = insn B          */
byte fb[6];          /* per-vCPU stale copies of halves 0 and 1, and 2 */
bool fv[6];          /* validity                                     */
byte rip[NV];        /* 0 = before A, 1 = between A and B            */
byte verA[NV];       /* version of A executed in this pass           */
bool writing = false;/* patcher is between first and last byte store */
byte committed = OLD;
bool abort_next = false;
bool needsync[NV];   /* only used by DEFERRED                        */
#define FB(v,k) fb[(v)*3+(k)]
#define FV(v,k) fv[(v)*3+(k)]

inline serialise(v) { FV(v,0)=false; FV(v,1)=false; FV(v,2)=false }

/* the front end may copy code bytes at any moment; it drops a copy only on
 * serialisation (or by chance, on replacement)                              */
proctype frontend(byte v) {
end_fe:
  do
  :: atomic { !FV(v,0) -> FB(v,0)=mem[0]; FV(v,0)=true }
  :: atomic { !FV(v,1) -> FB(v,1)=mem[1]; FV(v,1)=true }
  :: atomic { !FV(v,2) -> FB(v,2)=mem[2]; FV(v,2)=true }
  :: atomic { FV(v,0) -> FV(v,0)=false }
  :: atomic { FV(v,1) -> FV(v,1)=false }
  :: atomic { FV(v,2) -> FV(v,2)=false }
  od
}

proctype vcpu(byte v) {
  byte g=0; byte dn=0; byte a; byte b;
  do
  :: /* USER: top of the run loop */
     st[v]=USER;
     if :: sig[v] -> sig[v]=false       /* handler runs in user mode: signal is consumed */
        :: else
     fi;
repark:
     if
     :: req[v]!=dn ->                   /* pending iff the generation differs; never zeroed */
        g=req[v];
        /* --- park path --- */
#ifdef SYNC_BEFORE
        serialise(v);
#endif
        st[v]=PARKED;
        ack[v]=g;
        go>=g;                          /* acquire: bytes are final for generation g */
#if !defined(NOSYNC) && !defined(SYNC_BEFORE)
        d_step { serialise(v) };
#endif
#ifndef LATE_CLEAR
        immexit[v]=false;               /* cleared by the vCPU only, only while parked */
        if :: req[v]!=g -> goto repark  /* Dekker pair with the patcher's req;immexit  */
           :: else
        fi;
#endif
        synced[v]=g; dn=g;
        rel>=g || req[v]!=g;
#ifdef LATE_CLEAR
        st[v]=USER; immexit[v]=false    /* wrong place: can eat the next kick */
#else
        if :: req[v]!=dn -> goto repark :: else fi
#endif
     :: else -> skip
     fi;
     /* window: request may arrive here, after the check */
     if :: sig[v] -> sig[v]=false :: else fi;
     /* ioctl(KVM_RUN): polls immediate_exit ONCE */
     st[v]=KCHECK;
#ifndef NOIMM
     if :: immexit[v] -> goto out :: else fi;
#endif
again:
     /* last check with irqs off, then VM entry: atomic w.r.t. the kick */
     atomic {
       if :: sig[v] -> goto out
          :: else -> st[v]=GUEST
       fi
     };
#ifndef DEFERRED
     assert(!writing);
#endif
     do
     :: sig[v] -> st[v]=KCHECK; break            /* IPI -> VM exit, -EINTR */
     :: !sig[v] && rip[v]==0 ->                  /* execute insn A: both halves in one step */
        d_step {
          a = (FV(v,0) -> FB(v,0) : mem[0]); b = (FV(v,1) -> FB(v,1) : mem[1]);
          assert(a==b);                          /* I1: no torn instruction */
          verA[v]=a; rip[v]=1; a=0; b=0
        }
     :: !sig[v] && rip[v]==1 ->
        d_step {
          a = (FV(v,2) -> FB(v,2) : mem[2]);
#ifndef TORNONLY
          assert(a==verA[v]);                    /* I4: both sites from one version */
#endif
          rip[v]=0; a=0
        }
#ifdef DEFERRED
     :: needsync[v] && !sig[v] -> st[v]=KCHECK; serialise(v); needsync[v]=false; goto again
#endif
     od;
out: skip;
progress_run:
     skip
  od
}

proctype patcher() {
  byte g=0; byte i; byte nv; bool bad; bool gaveup;
  do
  :: g < NPATCH ->
     g++; nv = (committed==OLD -> NEW : OLD); gaveup=false;
#ifdef DEFERRED
     i=0; do :: i<NV -> needsync[i]=true; i++ :: else -> break od;
     writing=true; mem[0]=nv; mem[1]=nv; mem[2]=nv; writing=false; committed=nv
#else
     /* P1 request + kick */
     i=0;
     do :: i<NV ->
           req[i]=g;                    /* store-release, then full barrier */
           immexit[i]=true;             /* before the signal                */
           sig[i]=true;                 /* tgkill                           */
           i++
        :: else -> break
     od;
     /* P2 wait for every acknowledgement; the deadline may pass at any time */
     i=0;
     do :: i<NV && ack[i]==g -> i++
        :: i==NV -> break
#ifdef GIVEUP
        :: i<NV && ack[i]!=g -> gaveup=true; break
#endif
     od;
     if
     :: gaveup -> go=g; rel=g            /* not one byte written: resume everybody on old code */
     :: else ->
        /* P3 inspect */
        bad=false;
#ifndef NOMID
        i=0; do :: i<NV -> if :: rip[i]!=0 -> bad=true :: else fi; i++ :: else -> break od;
#endif
        i=0; do :: i<NV -> assert(st[i]==PARKED); i++ :: else -> break od;
        if
        :: bad -> skip                   /* refuse, resume, retry later */
        :: else ->
           writing=true; mem[0]=nv; mem[1]=nv;
           if :: mem[2]=nv; committed=nv
              :: mem[1]=1-nv; mem[0]=1-nv   /* verify failed: roll back */
           fi;
           writing=false
        fi;
        assert(mem[0]==committed && mem[1]==committed && mem[2]==committed);  /* I5 */
        go=g;
        i=0; do :: i<NV -> synced[i]==g; i++ :: else -> break od;
        rel=g
     fi
#endif
  :: else -> break
  od;
patched: skip
}

init { atomic {
  byte i=0;
  do :: i<NV -> st[i]=USER; run vcpu(i); run frontend(i); i++ :: else -> break od;
  run patcher() } }

#ifdef LIVE
ltl done { <> (patcher@patched) }
#endif
