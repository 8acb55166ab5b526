# What the suite runs in a box to see what of the network it has: a line of standard
# input is something to try, a line of standard output what came of it.
import errno, socket, struct, sys, threading

QUESTION = b"a question that is no DNS"
REFUSED = {errno.ECONNREFUSED, errno.EPERM, errno.EACCES, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT,
           errno.ESOCKTNOSUPPORT, errno.EPROTOTYPE, errno.EINVAL, errno.EOPNOTSUPP, errno.ECONNRESET, errno.ENOSYS}
UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENODEV}


def open_socket(host, kind, proto=0, seconds=15):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family, kind, proto)
    s.settimeout(seconds)
    return s


def tcp(host, port):
    s = open_socket(host, socket.SOCK_STREAM)
    s.connect((host, int(port)))
    return s.recv(200).decode() or "closed"


def udp(host, port, seconds=15):
    s = open_socket(host, socket.SOCK_DGRAM, seconds=seconds)
    s.connect((host, int(port)))
    s.send(QUESTION)
    return "answered" if s.recv(200) == QUESTION else "answered otherwise"


def multicast(host, port):
    return udp(host, port, 0.3)


def icmp(host, kind=socket.SOCK_DGRAM):
    s = open_socket(host, kind, socket.IPPROTO_ICMP, 0.5)
    s.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FF, 0, 0), (host, 0))
    s.recv(200)
    return "answered"


def raw(host):
    return icmp(host, socket.SOCK_RAW)


def packet():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    return "opened"


def vsock(cid):
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    s.settimeout(0.5)
    s.connect((int(cid), 1024))
    return "connected"


def abstract(name):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.connect("\0" + name)
    return "connected"


def itself():
    # Programs in a box can talk to each other.
    listener = socket.create_server(("127.0.0.1", 0))
    answering = threading.Thread(target=lambda: listener.accept()[0].sendall(b"itself"), daemon=True)
    answering.start()
    answer = tcp("127.0.0.1", listener.getsockname()[1])
    # Python ends a thread that is left at its own end by a library that boxes may not have.
    answering.join(5)
    return answer


for line in sys.stdin:
    what, *args = line.split()
    try:
        answer = globals()[what](*args)
    except socket.timeout:
        answer = "nothing"
    except OSError as e:
        if e.errno in REFUSED:
            answer = "refused"
        elif e.errno in UNREACHABLE:
            answer = "unreachable"
        else:
            answer = repr(e)
    print(answer, flush=True)
