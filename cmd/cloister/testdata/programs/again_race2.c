#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <signal.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <unistd.h>
#include <time.h>
#include <sys/time.h>
#include <sched.h>
/* mmap/munmap at same address, readers with SIGSEGV handlers that siglongjmp; itimer; malloc */
char*p;volatile int stop;static __thread sigjmp_buf jb;volatile long segv,alrm;
void h(int s){__sync_fetch_and_add(&segv,1);siglongjmp(jb,1);}
void al(int s){__sync_fetch_and_add(&alrm,1);}
void*r(void*x){long n=0;while(!stop){if(!sigsetjmp(jb,1)){n+=*(volatile char*)p;*(volatile char*)(p+4096)=n;}}return 0;}
void*m(void*x){for(int i=0;i<200||!segv||!alrm;i++){mmap(p,8192,PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED,-1,0);mprotect(p,8192,PROT_READ);mprotect(p,8192,PROT_NONE);munmap(p,8192);}stop=1;return 0;}
int main(){struct sigaction a={.sa_handler=h};sigaction(SIGSEGV,&a,0);sigaction(SIGBUS,&a,0);a.sa_handler=al;a.sa_flags=SA_RESTART;sigaction(SIGALRM,&a,0);
p=mmap(0,8192,PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS,-1,0);struct itimerval it={{0,2000},{0,2000}};setitimer(ITIMER_REAL,&it,0);
pthread_t t[4];for(int i=0;i<3;i++)pthread_create(t+i,0,r,0);pthread_create(t+3,0,m,0);for(int i=0;i<4;i++)pthread_join(t[i],0);printf("segv>0 %d alrm>0 %d\n",segv>0,alrm>0);}
