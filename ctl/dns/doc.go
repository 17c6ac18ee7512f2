// Package dns resolves container names.
//
// A Server listens on the gateway address of every network that is up and has
// DNS on. It answers NAME and NAME.NETWORK for the containers of that network,
// and reverse questions for its subnet. It forwards everything else to the
// host's resolvers. The client's address selects the network, not the gateway
// that was asked. Nothing is forwarded from an internal network, and only
// containers and the host get answers. Waiting questions and TCP connections
// are shared among the clients (package fair); questions for container names
// never wait. The server holds no state: it reads the names from the control
// plane.
//
// Without the server containers only lose their names: the resolv.conf that
// `fastbr run` writes also lists the host's resolvers.
package dns
