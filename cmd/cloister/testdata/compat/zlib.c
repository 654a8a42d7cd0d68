// zlib.c packs and unpacks 20 MB at every level, in memory and through a gzip file. Usage: zlib FILE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { SIZE = 20000000 };

static unsigned char data[SIZE], back[SIZE];

int main(int argc, char **argv)
{
	static const char *words[] = {"alpha ", "beta ", "gamma ", "delta ", "epsilon\n", "zeta ", "eta ", "theta "};
	unsigned long long x = 1;
	uLong packed = compressBound(SIZE);
	unsigned char *out = malloc(packed);
	gzFile f;
	int n;

	if (argc != 2)
		return 2;
	for (size_t i = 0; i < SIZE;) {
		const char *w;

		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		w = words[x >> 61];
		for (; *w && i < SIZE; i++)
			data[i] = *w++;
		if (x >> 50 & 1 && i < SIZE)
			data[i++] = x >> 40;
	}
	printf("zlib %s crc %08lx adler %08lx\n", zlibVersion(), crc32(0, data, SIZE), adler32(1, data, SIZE));
	for (int level = 0; level <= 6; level += 3) {
		uLongf len = packed, raw = SIZE;
		int rc = compress2(out, &len, data, SIZE, level);

		printf("level %d: %d, %lu bytes, crc %08lx", level, rc, len, crc32(0, out, len));
		memset(back, 0, SIZE);
		rc = uncompress(back, &raw, out, len);
		printf(", back %d %s\n", rc, raw == SIZE && !memcmp(data, back, SIZE) ? "equal" : "DIFFERENT");
		out[len / 2] ^= 0x10;
		raw = SIZE;
		printf("damaged: %d\n", uncompress(back, &raw, out, len));
	}
	f = gzopen(argv[1], "wb6");
	for (size_t i = 0; i < SIZE; i += 100000)
		if (gzwrite(f, data + i, 100000) != 100000)
			printf("gzwrite fails at %zu\n", i);
	gzprintf(f, "end %d\n", 42);
	printf("closed %d\n", gzclose(f));
	f = gzopen(argv[1], "rb");
	memset(back, 0, SIZE);
	for (size_t got = 0; got < SIZE && (n = gzread(f, back + got, SIZE - got < 65537 ? SIZE - got : 65537)) > 0;)
		got += n;
	printf("file %s", memcmp(data, back, SIZE) ? "DIFFERENT" : "equal");
	printf(", then %s", gzgets(f, (char *)back, 100));
	n = gzgetc(f);
	printf("eof %d, %d\n", n, gzclose(f));
	return 0;
}
