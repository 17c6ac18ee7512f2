// Package dns answers containers' questions for each other's names.
//
// A Server listens on the gateway address of every network that is up and has
// names switched on. It answers NAME and NAME.NETWORK for the containers of that
// network and reverse questions for its subnet, and forwards everything else to
// the host's own resolvers. Which network it is, the client's address says, not
// the gateway that was asked: from an internal network nothing is forwarded, and
// nobody but containers and the host is answered. Questions that wait and TCP
// connections are shared among the clients (package fair), names of containers
// never wait. It keeps no state: the names are those of the control plane at that
// moment.
// Without it containers only lose their names: the resolver configuration that
// `fastbr run` writes names the host's resolvers after it.
package dns
