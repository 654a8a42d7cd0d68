/* delivery: signals of a fault, of a timer, and of another thread, to threads that execute. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>
#include <pthread.h>
#include <setjmp.h>
static char *page; static volatile int hits, alarms, usr; static sigjmp_buf jb;
static void segv(int s, siginfo_t*i, void*c){ hits++; if((char*)i->si_addr==page+8) mprotect(page,4096,PROT_READ|PROT_WRITE); else siglongjmp(jb,1);}
static void alrm(int s){alarms++;}
static void onusr(int s){usr++;}
static void *spin(void*a){ while(usr<5); return a;}
int main(){ struct sigaction sa={0}; sa.sa_sigaction=segv; sa.sa_flags=SA_SIGINFO; sigaction(SIGSEGV,&sa,0);
 page=mmap(0,4096,PROT_NONE,MAP_PRIVATE|MAP_ANONYMOUS,-1,0); page[8]=42; printf("fixed %d hits %d\n",page[8],hits);
 double x=1.5; if(!sigsetjmp(jb,1)) *(volatile int*)16=1; printf("jumped %f\n",x);
 sa.sa_handler=alrm; sa.sa_flags=0; sigaction(SIGALRM,&sa,0); struct itimerval it={{0,2000},{0,2000}}; setitimer(ITIMER_REAL,&it,0); double y=1; while(alarms<20) y=y*1.0000001; it.it_value.tv_usec=it.it_interval.tv_usec=0; setitimer(ITIMER_REAL,&it,0); printf("alarms %s\n", alarms>=20?"ok":"?");
 sa.sa_handler=onusr; sigaction(SIGUSR1,&sa,0); pthread_t t; pthread_create(&t,0,spin,0); for(int i=0;i<5;i++){ int was=usr; pthread_kill(t,SIGUSR1); while(usr==was); } pthread_join(t,0); printf("usr %d\n",usr);
 sa.sa_handler=onusr; sigset_t m; sigemptyset(&m); raise(SIGUSR1); printf("usr %d\n",usr); return 0;}
