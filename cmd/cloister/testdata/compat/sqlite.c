// sqlite.c runs a database of one file through what SQLite asks of a kernel: journals (rollback and write-ahead, whose
// index is a shared mapping), record locks of two connections, transactions larger than the cache, recovery of a hot
// journal, VACUUM and the integrity check. Usage: sqlite FILE
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int row(void *name, int n, char **value, char **column)
{
	(void)column;
	printf("%s:", (char *)name);
	for (int i = 0; i < n; i++)
		printf(" %s", value[i] ? value[i] : "NULL");
	putchar('\n');
	return 0;
}

static int run(sqlite3 *db, const char *name, const char *sql)
{
	char *message = NULL;
	int rc = sqlite3_exec(db, sql, row, (void *)name, &message);

	if (rc != SQLITE_OK)
		printf("%s: error %d (%s)\n", name, sqlite3_extended_errcode(db), message ? message : "no message");
	sqlite3_free(message);
	return rc;
}

static sqlite3 *opened(const char *file)
{
	sqlite3 *db;

	if (sqlite3_open(file, &db) != SQLITE_OK) {
		printf("open: %s\n", sqlite3_errmsg(db));
		exit(1);
	}
	run(db, "setup", "PRAGMA cache_size = 200; PRAGMA synchronous = FULL");
	return db;
}

// fill inserts n rows by a prepared statement in one transaction.
static void fill(sqlite3 *db, int from, int n)
{
	sqlite3_stmt *s;
	unsigned long long x = 88172645463325252ULL + from;

	run(db, "begin", "BEGIN IMMEDIATE");
	if (sqlite3_prepare_v2(db, "INSERT INTO t VALUES (?, ?, ?, ?)", -1, &s, NULL) != SQLITE_OK)
		printf("prepare: %s\n", sqlite3_errmsg(db));
	for (int i = from; i < from + n; i++) {
		char text[64];
		unsigned char blob[128];

		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		snprintf(text, sizeof text, "row %d is %llx", i, x);
		for (unsigned k = 0; k < sizeof blob; k++)
			blob[k] = x >> (k % 57);
		sqlite3_bind_int(s, 1, i);
		sqlite3_bind_text(s, 2, text, -1, SQLITE_STATIC);
		sqlite3_bind_double(s, 3, (double)(x % 1000003) / 7);
		sqlite3_bind_blob(s, 4, blob, x % sizeof blob, SQLITE_STATIC);
		if (sqlite3_step(s) != SQLITE_DONE) {
			printf("insert %d: %s\n", i, sqlite3_errmsg(db));
			break;
		}
		sqlite3_reset(s);
	}
	sqlite3_finalize(s);
	run(db, "commit", "COMMIT");
}

static const char summary[] = "SELECT count(*), sum(id), total(r), sum(length(b)), max(txt) FROM t";

static void workload(const char *file, const char *journal)
{
	char pragma[64];
	sqlite3 *one = opened(file), *two;

	printf("-- %s\n", journal);
	snprintf(pragma, sizeof pragma, "PRAGMA journal_mode = %s", journal);
	run(one, "mode", pragma);
	run(one, "schema", "DROP TABLE IF EXISTS t; CREATE TABLE t (id INTEGER PRIMARY KEY, txt TEXT, r REAL, b BLOB); CREATE INDEX i ON t (txt, r)");
	fill(one, 0, 8000);
	run(one, "filled", summary);
	two = opened(file);
	run(two, "seen by the other", summary);

	// Locks: what one connection holds the other is refused, reading goes on as the journal allows.
	run(one, "hold", "BEGIN IMMEDIATE; UPDATE t SET r = r + 1 WHERE id % 3 = 0");
	run(two, "refused", "BEGIN IMMEDIATE");
	run(two, "reads on", summary);
	run(one, "rollback", "ROLLBACK");
	run(one, "rolled back", summary);
	run(two, "now", "BEGIN EXCLUSIVE; DELETE FROM t WHERE id % 5 = 4; COMMIT");
	run(one, "deleted", summary);

	run(one, "nested", "BEGIN; UPDATE t SET txt = upper(txt) WHERE id < 5000; SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; COMMIT");
	run(one, "joined", "SELECT count(*), sum(a.id) FROM t a JOIN t b ON b.id = a.id + 1 WHERE a.txt < b.txt");
	run(one, "grouped", "SELECT substr(txt, 1, 5) k, count(*), round(avg(r), 3) FROM t GROUP BY k ORDER BY 2 DESC, 1 LIMIT 5");
	run(one, "recursive", "WITH RECURSIVE f(a, b) AS (VALUES (0, 1) UNION ALL SELECT b, a + b FROM f LIMIT 50) SELECT max(a) FROM f");
	run(one, "duplicate", "INSERT INTO t VALUES (0, '', 0, NULL)");
	sqlite3_close(two);
	run(one, "vacuum", "VACUUM");
	run(one, "integrity", "PRAGMA integrity_check");
	run(one, "pages", "PRAGMA page_count");
	sqlite3_close(one);
}

// crash leaves a transaction half written, as a program does that dies: the next one to open the file rolls it back.
static void crash(const char *file)
{
	sqlite3 *db = opened(file);

	run(db, "mode", "PRAGMA journal_mode = DELETE");
	run(db, "half", "PRAGMA cache_size = 10; BEGIN; UPDATE t SET b = zeroblob(100)");
	fflush(stdout);
	_Exit(0);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[2], "crash"))
		crash(argv[1]);
	if (argc == 2) {
		printf("sqlite %s\n", sqlite3_libversion());
		workload(argv[1], "DELETE");
		workload(argv[1], "TRUNCATE");
		workload(argv[1], "WAL");
	}
	sqlite3 *db = opened(argv[1]);
	run(db, "at last", summary);
	run(db, "integrity", "PRAGMA integrity_check");
	return sqlite3_close(db);
}
