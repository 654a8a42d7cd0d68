#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <signal.h>
#include <unistd.h>
void h(int s){}
void*self(void*x){for(int i=0;i<4000;i++)pthread_kill(pthread_self(),SIGUSR1);return 0;}
void*proc(void*x){for(int i=0;i<4000;i++)kill(getpid(),SIGUSR2);return 0;}
int main(){struct sigaction a={.sa_handler=h,.sa_flags=SA_RESTART};sigaction(SIGUSR1,&a,0);sigaction(SIGUSR2,&a,0);
pthread_t t,u;pthread_create(&t,0,self,0);pthread_create(&u,0,proc,0);pthread_join(t,0);pthread_join(u,0);puts("joined");}
