#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
#include <sys/syscall.h>
#include <asm/prctl.h>
long v=42;
void*a(void*x){unsigned long g=1;syscall(SYS_arch_prctl,ARCH_GET_GS,&g);printf("child gs same %d\n",g==(unsigned long)&v);return 0;}
int main(){syscall(SYS_arch_prctl,ARCH_SET_GS,&v);pthread_t p;pthread_create(&p,0,a,0);pthread_join(p,0);}
