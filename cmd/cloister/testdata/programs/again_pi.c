#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <time.h>
pthread_mutex_t m;
void*a(void*x){pthread_mutex_lock(&m);usleep(100000);return 0;}
void*b(void*x){usleep(30000);int r=pthread_mutex_lock(&m);printf("b got %s\n",strerror(r));fflush(stdout);return 0;}
int main(){pthread_mutexattr_t t;pthread_mutexattr_init(&t);pthread_mutexattr_setprotocol(&t,PTHREAD_PRIO_INHERIT);pthread_mutexattr_setrobust(&t,PTHREAD_MUTEX_ROBUST);pthread_mutex_init(&m,&t);
pthread_t p,q;pthread_create(&p,0,a,0);pthread_create(&q,0,b,0);pthread_join(p,0);pthread_join(q,0);puts("done");}
