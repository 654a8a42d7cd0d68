#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/syscall.h>
#include <linux/futex.h>
int w;
void*a(void*x){syscall(SYS_futex,&w,FUTEX_LOCK_PI,0,0);usleep(100000);return 0;}
void*b(void*x){usleep(30000);long r=syscall(SYS_futex,&w,FUTEX_LOCK_PI,0,0);printf("b got %ld own %d died %d\n",r,(w&FUTEX_TID_MASK)==gettid(),!!(w&FUTEX_OWNER_DIED));fflush(stdout);return 0;}
int main(){pthread_t p,q;pthread_create(&p,0,a,0);pthread_create(&q,0,b,0);pthread_join(p,0);pthread_join(q,0);puts("done");}
