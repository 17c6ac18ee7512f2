package rfc

// scoreCheck says how and where a requirement is checked.
type scoreCheck struct {
	small bool // in the beds with a NAT range of 64 ports
	check func(*bed) error
	like  string // an earlier requirement with the same check
}

// scoreChecks are all checks, by requirement.
func scoreChecks() map[string]scoreCheck {
	in := func(check func(*bed) error) scoreCheck { return scoreCheck{check: check} }
	small := func(check func(*bed) error) scoreCheck { return scoreCheck{small: true, check: check} }
	like := func(id string) scoreCheck { return scoreCheck{like: id} }
	likeSmall := func(id string) scoreCheck { return scoreCheck{like: id, small: true} }
	return map[string]scoreCheck{
		"rfc:4787#REQ-1":  in(checkEIM("udp")),
		"rfc:4787#REQ-2":  in(checkPooling),
		"rfc:4787#REQ-3":  small(checkOverload("udp")),
		"rfc:4787#REQ-3a": in(checkPortClass),
		"rfc:4787#REQ-4":  in(checkParity),
		"rfc:4787#REQ-5":  in(checkUDPLifetime),
		"rfc:4787#REQ-6":  in(checkRefresh),
		"rfc:4787#REQ-7":  in(checkNewAddress),
		"rfc:4787#REQ-8":  in(checkDefaultFilter("udp")),
		"rfc:4787#REQ-8a": in(checkFilterChoice("udp")),
		"rfc:4787#REQ-9":  in(checkHairpin("udp")),
		"rfc:4787#REQ-10": in(checkBodies),
		"rfc:4787#REQ-11": small(checkSameClass),
		"rfc:4787#REQ-12": in(checkErrorsEndNothing),
		"rfc:4787#REQ-13": in(checkTooBig),
		"rfc:4787#REQ-14": in(checkFragments),

		"rfc:5382#REQ-1":            in(checkEIM("tcp")),
		"rfc:5382#REQ-2":            in(checkTCPOptions),
		"rfc:5382#REQ-2a":           in(checkSimultaneousOpen),
		"rfc:5382#REQ-2/half-close": in(checkHalfClose),
		"rfc:5382#REQ-2/rst":        in(checkReset),
		"rfc:5382#REQ-2/syn-again":  in(checkSYNAgain),
		"rfc:5382#REQ-2/reuse":      in(checkTupleReuse),
		"rfc:5382#REQ-2/fast-open":  in(checkFastOpen),
		"rfc:5382#REQ-2/keep-alive": in(checkKeepAlive),
		"rfc:5382#REQ-3":            in(checkDefaultFilter("tcp")),
		"rfc:5382#REQ-3a":           in(checkFilterChoice("tcp")),
		"rfc:5382#REQ-4":            in(checkUnsolicitedSYN),
		"rfc:5382#REQ-5":            in(checkTCPLifetimes),
		"rfc:5382#REQ-6":            like("rfc:4787#REQ-10"),
		"rfc:5382#REQ-7":            small(checkOverload("tcp")),
		"rfc:5382#REQ-8":            in(checkHairpin("tcp")),
		"rfc:5382#REQ-9":            in(checkRefusedConnection),
		"rfc:5382#REQ-10":           in(checkErrorsOnLiveTCP),

		"rfc:5508#REQ-1":      in(checkQueries),
		"rfc:5508#REQ-1a":     in(checkEIM("icmp")),
		"rfc:5508#REQ-2":      in(checkICMPLifetime),
		"rfc:5508#REQ-3":      in(checkBadErrors),
		"rfc:5508#REQ-4":      in(checkErrorIn),
		"rfc:5508#REQ-4/pmtu": in(checkPMTU),
		"rfc:5508#REQ-5":      in(checkErrorOut),
		"rfc:5508#REQ-6":      in(checkErrorsRefreshNothing),
		"rfc:5508#REQ-7":      in(checkHairpinError),
		"rfc:5508#REQ-8":      small(checkRefusal),
		"rfc:5508#REQ-9":      in(checkHostPolicy),
		"rfc:5508#REQ-10":     in(checkTraceroute),
		"rfc:5508#REQ-11":     in(checkOtherICMP),

		"rfc:7857#2":   in(checkTCPStates),
		"rfc:7857#2.1": like("rfc:5382#REQ-5"),
		"rfc:7857#2.2": in(checkResetLifetime),
		"rfc:7857#3":   in(checkEDM),
		"rfc:7857#4":   like("rfc:4787#REQ-2"),
		"rfc:7857#5":   in(checkPerProtocol),
		"rfc:7857#7":   in(checkAnswersDoNotRefresh),
		"rfc:7857#8":   in(checkParityOff),
		"rfc:7857#9":   in(checkRandomPorts),
		"rfc:7857#10":  in(checkFragmentIDs),
		"rfc:7857#11":  small(checkMappingDies),
		"rfc:7857#12":  in(checkHairpinQuery),

		"rfc:6056#3.2":    small(checkWholeRange),
		"rfc:6056#4":      like("rfc:7857#9"),
		"rfc:6888#REQ-2":  like("rfc:4787#REQ-2"),
		"rfc:6888#REQ-4":  small(checkShare),
		"rfc:6888#REQ-5":  small(checkStateShare),
		"rfc:6888#REQ-6":  small(checkUntranslated),
		"rfc:6888#REQ-8":  small(checkHold),
		"rfc:6888#REQ-11": small(checkExhaustion),
		"rfc:6888#REQ-12": small(checkNoDestinations),
		"rfc:6888#REQ-13": likeSmall("rfc:6056#3.2"),

		"rfc:1812#ttl":          in(checkTTL),
		"rfc:1812#ttl-exceeded": in(checkTTLExceeded),
		"rfc:1624#checksum":     in(checkSums),
		"rfc:1812#icmp-errors":  in(checkNoErrorsAboutErrors),
		"rfc:1812#martians":     in(checkMartians),
		"rfc:1812#options":      in(checkIPOptions),
		"rfc:2474#dscp":         in(checkTOS),
		"rfc:7915#udp-zero":     in(checkUDPZero),

		"rfc:9260#out":       in(checkSCTPOut),
		"rfc:9260#published": in(checkSCTPPublished),
		"rfc:2784#out":       in(checkOther(protoGRE, []byte("\x00\x00\x08\x00question"), []byte("\x00\x00\x08\x00answer"))),
		"rfc:3828#out":       in(checkSummed(protoUDPLite)),
		"rfc:4340#out":       in(checkSummed(protoDCCP)),
		"rfc:4213#out":       in(checkOther(proto6in4, append([]byte{0x60, 6: 59, 7: 64, 39: 1}, "question"...), append([]byte{0x60, 6: 59, 7: 64, 39: 2}, "answer"...))),
		"rfc:3376#out":       in(checkOther(protoIGMP, []byte("\x16\x00\x09\xfd\xe0\x00\x00\x02"), []byte("\x11\x00\xee\xff\x00\x00\x00\x00"))),
		"rfc:4303#out":       in(checkOther(protoESP, []byte("\x00\x00\x10\x01question"), []byte("\x00\x00\x10\x02answer"))),
	}
}

// scoreLast are the checks that disturb their bed. They run last.
func scoreLast() []string {
	return []string{"rfc:6888#REQ-6", "rfc:4787#REQ-13", "rfc:5508#REQ-4/pmtu", "rfc:4787#REQ-14", "rfc:4787#REQ-7"}
}
