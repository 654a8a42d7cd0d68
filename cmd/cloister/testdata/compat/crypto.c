// crypto.c asks OpenSSL's libcrypto for answers that others published, and for signatures by fixed keys.
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void show(const char *name, const unsigned char *p, size_t n)
{
	printf("%s ", name);
	for (size_t i = 0; i < n; i++)
		printf("%02x", p[i]);
	putchar('\n');
}

static void fail(const char *what)
{
	printf("FAILED: %s\n", what);
	ERR_print_errors_fp(stdout);
	exit(1);
}

static size_t unhex(const char *hex, unsigned char *out)
{
	size_t n = 0;

	for (; hex[0] && hex[1]; hex += 2)
		sscanf(hex, "%2hhx", &out[n++]);
	return n;
}

static void equal(const char *what, const unsigned char *got, size_t n, const char *hex)
{
	unsigned char want[256];

	show(what, got, n);
	if (unhex(hex, want) != n || memcmp(got, want, n))
		fail(what);
}

// digests: "abc" is FIPS 180 and 202's first example; the other input is longer than any block.
static void digests(void)
{
	static const char *names[] = {"MD5", "SHA1", "SHA224", "SHA256", "SHA384", "SHA512", "SHA512-256", "SHA3-256", "SHA3-512", "SHAKE128",
				      "BLAKE2B512", "BLAKE2S256", "SM3"};
	static unsigned char big[1000003], md[EVP_MAX_MD_SIZE];
	unsigned int n;

	for (size_t i = 0; i < sizeof big; i++)
		big[i] = i * 2654435761u >> 11;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		const EVP_MD *type = EVP_get_digestbyname(names[i]);

		if (!type || !EVP_Digest("abc", 3, md, &n, type, NULL))
			fail(names[i]);
		show(names[i], md, n);
		if (!EVP_Digest(big, sizeof big, md, &n, type, NULL))
			fail(names[i]);
		show(names[i], md, n);
	}
	EVP_Digest("abc", 3, md, &n, EVP_sha256(), NULL);
	equal("FIPS 180 sha256", md, n, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	HMAC(EVP_sha256(), "Jefe", 4, (const unsigned char *)"what do ya want for nothing?", 28, md, &n);
	equal("RFC 4231 case 2", md, n, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
	if (!PKCS5_PBKDF2_HMAC("passwordPASSWORDpassword", 24, (const unsigned char *)"saltSALTsaltSALTsaltSALTsaltSALTsalt", 36, 4096, EVP_sha1(), 25, md))
		fail("PBKDF2");
	equal("RFC 6070 case 5", md, 25, "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038");
}

static void aead(const char *what, const EVP_CIPHER *type, const char *key, const char *iv, const char *aad, const char *plain, const char *cipher, const char *tag)
{
	unsigned char k[64], v[16], a[64], p[128], c[128], t[16];
	int n, ivlen = unhex(iv, v), alen = unhex(aad, a), len = unhex(plain, p);
	EVP_CIPHER_CTX *x = EVP_CIPHER_CTX_new();

	unhex(key, k);
	if (!EVP_EncryptInit_ex(x, type, NULL, NULL, NULL) || !EVP_CIPHER_CTX_ctrl(x, EVP_CTRL_AEAD_SET_IVLEN, ivlen, NULL) ||
	    !EVP_EncryptInit_ex(x, NULL, NULL, k, v) || !EVP_EncryptUpdate(x, NULL, &n, a, alen) || !EVP_EncryptUpdate(x, c, &n, p, len) ||
	    !EVP_EncryptFinal_ex(x, c + n, &n) || !EVP_CIPHER_CTX_ctrl(x, EVP_CTRL_AEAD_GET_TAG, 16, t))
		fail(what);
	equal(what, c, len, cipher);
	equal(what, t, 16, tag);
	for (int bad = 0; bad < 2; bad++) {
		t[3] ^= bad;
		if (!EVP_DecryptInit_ex(x, type, NULL, NULL, NULL) || !EVP_CIPHER_CTX_ctrl(x, EVP_CTRL_AEAD_SET_IVLEN, ivlen, NULL) ||
		    !EVP_DecryptInit_ex(x, NULL, NULL, k, v) || !EVP_DecryptUpdate(x, NULL, &n, a, alen) || !EVP_DecryptUpdate(x, p, &n, c, len) ||
		    !EVP_CIPHER_CTX_ctrl(x, EVP_CTRL_AEAD_SET_TAG, 16, t))
			fail(what);
		printf("%s opens: %d\n", what, EVP_DecryptFinal_ex(x, p + n, &n));
	}
	EVP_CIPHER_CTX_free(x);
}

static void ciphers(void)
{
	static const char *names[] = {"AES-128-CBC", "AES-256-CTR", "AES-192-CFB", "AES-256-XTS", "CAMELLIA-256-CBC", "ARIA-128-CTR", "CHACHA20", "DES-EDE3-CBC"};
	static unsigned char big[100000], out[100064];
	unsigned char key[64], iv[16], md[32];

	// McGrew and Viega, The Galois/Counter Mode of Operation, test case 4; RFC 8439, section 2.8.2.
	aead("AES-GCM case 4", EVP_aes_128_gcm(), "feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888", "feedfacedeadbeeffeedfacedeadbeefabaddad2",
	     "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
	     "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091",
	     "5bc94fbc3221a5db94fae95ae7121a47");
	for (int i = 0; i < 64; i++)
		key[i] = i * 7 + 1;
	for (int i = 0; i < 16; i++)
		iv[i] = i * 11;
	for (size_t i = 0; i < sizeof big; i++)
		big[i] = i * 40503u >> 7;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		EVP_CIPHER_CTX *x = EVP_CIPHER_CTX_new();
		const EVP_CIPHER *type = EVP_get_cipherbyname(names[i]);
		int n, last;

		if (!type || !EVP_EncryptInit_ex(x, type, NULL, key, iv) || !EVP_EncryptUpdate(x, out, &n, big, sizeof big) || !EVP_EncryptFinal_ex(x, out + n, &last))
			fail(names[i]);
		SHA256(out, n + last, md);
		show(names[i], md, 32);
		EVP_CIPHER_CTX_free(x);
	}
}

// signed_by signs with a key, verifies, and verifies that another message does not pass. Only a deterministic signature is shown.
static void signed_by(const char *name, const char *file, const EVP_MD *md, int deterministic)
{
	static const unsigned char message[] = "a message of no importance", other[] = "a message of some importance";
	FILE *f = fopen(file, "r");
	EVP_PKEY *key = f ? PEM_read_PrivateKey(f, NULL, NULL, NULL) : NULL;
	EVP_MD_CTX *x = EVP_MD_CTX_new();
	unsigned char sig[1024];
	size_t n = sizeof sig;

	if (!key || !EVP_DigestSignInit(x, NULL, md, NULL, key) || !EVP_DigestSign(x, sig, &n, message, sizeof message))
		fail(name);
	if (deterministic)
		show(name, sig, n);
	for (int i = 0; i < 2; i++) {
		EVP_MD_CTX_reset(x);
		if (!EVP_DigestVerifyInit(x, NULL, md, NULL, key))
			fail(name);
		printf("%s, %d bits, verifies: %d\n", name, EVP_PKEY_bits(key), EVP_DigestVerify(x, sig, n, i ? other : message, i ? sizeof other : sizeof message) == 1);
	}
	EVP_MD_CTX_free(x);
	EVP_PKEY_free(key);
	fclose(f);
}

int main(int argc, char **argv)
{
	unsigned char random[64], zero[64] = {0};

	if (argc != 4)
		return 2;
	printf("%s\n", OpenSSL_version(OPENSSL_VERSION));
	digests();
	ciphers();
	signed_by("RSA", argv[1], EVP_sha256(), 1);
	signed_by("ECDSA P-256", argv[2], EVP_sha256(), 0);
	signed_by("Ed25519", argv[3], NULL, 1);
	printf("random: %d, %d\n", RAND_bytes(random, sizeof random), memcmp(random, zero, sizeof zero) != 0);
	EVP_PKEY *key = EVP_RSA_gen(2048);
	printf("generated: %d bits\n", key ? EVP_PKEY_bits(key) : 0);
	EVP_PKEY_free(key);
	return 0;
}
