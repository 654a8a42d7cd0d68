package linux

const onlyHost = "with --net host; EAFNOSUPPORT or ENOTSOCK without"

// socketCalls are the calls on sockets.
var socketCalls = []call{
	{41, "socket", Partial, sysSocket, 0, onlyHost + ". AF_INET, AF_INET6 and AF_UNIX; streams and datagrams (TCP, MPTCP, UDP), SOCK_SEQPACKET of AF_UNIX; no netlink, raw or packet sockets"},
	{42, "connect", Partial, sysConnect, 0, onlyHost + ". Unix sockets by path below --rw (EROFS below --ro); no abstract names"},
	{43, "accept", Partial, sysAccept, 0, onlyHost},
	{44, "sendto", Partial, sysSendto, 0, onlyHost + ". As connect for Unix names; no MSG_FASTOPEN, MSG_ZEROCOPY is ignored"},
	{45, "recvfrom", Partial, sysRecvfrom, 0, onlyHost + ". MSG_WAITALL with MSG_PEEK does not wait for all"},
	{46, "sendmsg", Partial, sysSendmsg, 0, onlyHost + ". SCM_RIGHTS without directories, path handles and files of /proc; SCM_CREDENTIALS of the program's own"},
	{47, "recvmsg", Partial, sysRecvmsg, 0, onlyHost + ". As recvfrom; descriptors that were handed over can be read, written and mapped, not fchmod'ed"},
	{48, "shutdown", Partial, sysShutdown, 0, onlyHost},
	{49, "bind", Partial, sysBind, 0, onlyHost + ". Unix sockets by path below --rw, the last component at most 85 bytes; host processes see another name; no abstract names"},
	{50, "listen", Partial, sysListen, 0, onlyHost},
	{51, "getsockname", Partial, sysGetsockname, 0, onlyHost},
	{52, "getpeername", Partial, sysGetpeername, 0, onlyHost},
	{53, "socketpair", Partial, sysSocketpair, 0, onlyHost},
	{54, "setsockopt", Partial, sysSetsockopt, 0, onlyHost + ". Options without pointers, descriptors and privilege; SO_LINGER with a time does not make close wait; others ENOPROTOOPT"},
	{55, "getsockopt", Partial, sysGetsockopt, 0, onlyHost + ". As setsockopt"},
	{288, "accept4", Partial, sysAccept4, 0, onlyHost},
	{299, "recvmmsg", Partial, sysRecvmmsg, 0, onlyHost + ". As recvmsg"},
	{307, "sendmmsg", Partial, sysSendmmsg, 0, onlyHost + ". As sendmsg"},
}
