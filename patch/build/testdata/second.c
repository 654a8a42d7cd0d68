/* Another file with a local function and local data of names that target.c has too. */
static volatile long hidden = 5;
static __attribute__((noinline, noclone)) long secret(long x) { return x - hidden; }
long note_of(long x) { return secret(x); }
