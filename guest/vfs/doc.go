// Package vfs is the file namespace that a guest program sees: the host directories that the user
// mounted (--ro, --rw), a small synthetic /dev, /proc and /sys, and nothing else.
//
// A path is walked in the guest's namespace, one component at a time, on O_PATH handles that
// openat2(2) opened with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS. The host
// kernel is only ever asked for a plain name below a handle that is already inside a mount: it never
// sees "..", never follows a symbolic link, never starts at its own root. Links are read and expanded
// here, so an absolute link starts again at the guest's root and /usr/lib -> /lib works when both
// are mounted. ".." pops a stack of handles. A path without links and dots costs one openat2.
//
// An object is first held by an O_PATH handle, then judged (type, mount, file system), and only then
// opened, through the handle (/proc/self/fd/N of the VMM). What is opened is the inode that was
// judged, whatever a concurrent rename made of its name.
//
// Invariants:
//  1. Every host handle was reached from a mount's root by plain names alone.
//  2. The host resolves no "..", no symbolic link and no absolute path given by the guest.
//  3. Nothing on procfs is opened, wherever the host mounted one: its files answer for the process
//     that opens them, which is the VMM.
//  4. No device node below a mount is opened (EACCES, as on a nodev mount) and none is made (EPERM).
//     Sockets answer ENXIO to open(2), as everywhere.
//  5. No operation changes anything through a mount that is not Writable: EROFS, whether by name, by
//     directory or by an open File. This includes writing into a FIFO and connecting to a socket, which
//     Linux would allow: --ro promises that the host's processes hear nothing.
//     Mode, owner and times of an adopted stream are never changed (EPERM), nor those of a device
//     (EROFS): on a privileged VMM they would be the host's /dev/null and terminals.
//  6. A mount point, and any directory above one, cannot be removed, renamed or replaced (EBUSY).
//  7. A handle's descriptor is closed only when no position and no running operation refers to it; a
//     closed Dir or File answers EBADF and never another file.
//  8. The guest costs the VMM at most Options.Handles descriptors for positions (ENFILE beyond).
//     Descriptors in Files are bounded by the caller's descriptor table.
//
// FIFOs are allowed below mounts: they reach only those who open them by name in a directory that
// the user shared. Open blocks on one as it does natively, in the calling thread, unless O_NONBLOCK
// was given; no other Open blocks for longer than the file system takes.
//
// Differences from Linux that a program could notice:
//   - Dir.Path and ".." follow the way by which a directory was reached. If it is
//     moved to another parent afterwards, ".." still leads to the old one (which is inside the mount),
//     and Path still names the old place.
//   - A mount point hides what has its *name* in the directory above, so on a
//     case-insensitive file system the same directory may be reached under another case, with the
//     rights of the mount above.
//   - /proc/self/cwd, root and exe are plain links: RESOLVE_NO_MAGICLINKS does not refuse them (exe: where
//     Options.ExeFD is not given).
//   - inotify, fanotify, name_to_handle_at and mount(2) do not exist here.
//
// Not promised: a program that runs under a privileged VMM with a writable mount can leave a set-uid
// file there, as it could natively. Share such a directory on a nosuid mount, or run unprivileged.
// A host process that moves a directory out of a mount while the guest holds it open takes the guest's
// handle along, as with chroot; below it, not above.
//
// The file mode creation mask is the caller's: modes are passed to the host, whose process-wide umask
// applies (umask(2)).
//
// Alternatives rejected: os.Root (resolves links relative to one root, so absolute links and links
// from one mount into another fail; no O_PATH, no renameat2 flags, no xattr of errno); chroot or a
// mount namespace for the whole VMM (needs privilege, and the VMM itself needs the host's /proc and
// /dev); one openat2 with RESOLVE_IN_ROOT per mount (cannot cross mounts nor show /proc, and
// follows the host's symlinks inside it); checking a path string and then using it (races).
//
// Host facilities: openat2(2) (Linux 5.6), openat(2) O_PATH, proc(5) /proc/self/fd. Errno and their
// order follow path_resolution(7) and fs/namei.c of Linux 6.x.
package vfs
