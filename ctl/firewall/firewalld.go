package firewall

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// firewalld rejects what comes from a device that is in no zone of its own, and what
// clients send to its published ports. So our bridges get a zone that accepts, as
// Docker's have one, and a policy lets others send to it. All of it is also permanent,
// as nobody may be there to tell firewalld again after a reload.
const (
	zoneName   = "fastbr"
	policyName = "fastbr-forwarding"
)

// What the daemon is told of them (firewalld.dbus(5)).
var (
	zoneSettings = map[string]any{"target": "ACCEPT", "short": "fastbr", "forward": true, "masquerade": false,
		"description": "Bridges of fastbr. Everything is accepted. It goes with the last network, unless it has been changed."}
	policySettings = map[string]any{"target": "ACCEPT", "short": "fastbr", "masquerade": false,
		"ingress_zones": []string{"ANY"}, "egress_zones": []string{zoneName},
		"description": "Lets others send to fastbr's bridges: to published ports. It goes with the zone fastbr."}
)

// The daemon on the bus (firewalld.dbus(5)).
const (
	busName    = "org.fedoraproject.FirewallD1"
	busPath    = "/org/fedoraproject/FirewallD1"
	configPath = busPath + "/config"
	ofZones    = busName + ".zone"
	ofPolicies = busName + ".policy"
	ofConfig   = busName + ".config"
)

// daemonPatience is how long a command waits for firewalld in all. A reload takes it
// a second or two.
const daemonPatience = 30 * time.Second

// ofFirewalld tells that firewalld keeps the chain. It throws rules of others there
// away whenever it is reloaded, so we add none.
func (c *chain) ofFirewalld() bool { return c.table.name == "firewalld" }

// daemon is a firewalld that keeps this namespace's rules.
type daemon struct {
	conn *dbus.Conn
	ctx  context.Context
	end  func()
}

// daemon finds the firewalld of this namespace. nil: there is none, or none that can
// be talked to.
func (rs *ruleset) daemon() *daemon {
	if rs.chains[table{"inet", "firewalld"}] == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), daemonPatience)
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		cancel()
		return nil
	}
	d := &daemon{conn, ctx, func() { _ = conn.Close(); cancel() }}
	var pid uint32
	err = conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionUnixProcessID", 0, busName).Store(&pid)
	if err != nil || !sharesNetwork(pid) {
		d.end()
		return nil
	}
	return d
}

// sharesNetwork tells whether a process is in the network namespace of this thread.
func sharesNetwork(pid uint32) bool {
	own, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return false
	}
	other, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil && os.SameFile(own, other)
}

// call calls a method of the daemon's; out is a pointer to what it returns, or nil.
func (d *daemon) call(path dbus.ObjectPath, method string, out any, args ...any) error {
	c := d.conn.Object(busName, path).CallWithContext(d.ctx, method, dbus.FlagNoAutoStart, args...)
	err := c.Err
	if err == nil && out != nil {
		err = c.Store(out)
	}
	if err != nil {
		return fmt.Errorf("firewalld: %s: %w", method[strings.LastIndex(method, ".")+1:], err)
	}
	return nil
}

// list is what a method returns that takes nothing and returns names.
func (d *daemon) list(path dbus.ObjectPath, method string) (names []string, err error) {
	err = d.call(path, method, &names)
	return names, err
}

// zoneOf is the zone that a device has been put in, "" if it is in none.
func (d *daemon) zoneOf(device string) (zone string, err error) {
	err = d.call(busPath, ofZones+".getZoneOfInterface", &zone, device)
	return zone, err
}

// ensureZone puts the networks' bridges in the zone. A bridge that somebody has put
// in another stays there. Where it fails, Findings says what to do.
func (rs *ruleset) ensureZone(networks []Network, say func(string, ...any)) {
	d := rs.daemon()
	if d == nil {
		return
	}
	defer d.end()
	if err := d.ensure(networks, say); err != nil {
		say("%v", err)
	}
}

func (d *daemon) ensure(networks []Network, say func(string, ...any)) error {
	var homeless []string
	for _, n := range networks {
		zone, err := d.zoneOf(n.Bridge.Name)
		if err != nil {
			return err
		}
		if zone == "" {
			homeless = append(homeless, n.Bridge.Name)
		}
	}
	if len(homeless) == 0 {
		return nil
	}
	if err := d.makeZone(say); err != nil {
		return err
	}
	stored, err := d.stored(ofConfig+".getZoneByName", zoneName)
	if err != nil {
		return err
	}
	for _, bridge := range homeless {
		if err := d.call(busPath, ofZones+".addInterface", nil, zoneName, bridge); err != nil {
			return err
		}
		var zone string
		if err := d.call(configPath, ofConfig+".getZoneOfInterface", &zone, bridge); err != nil {
			return err
		}
		if zone == "" {
			if err := d.call(stored, ofConfig+".zone.addInterface", nil, bridge); err != nil {
				return err
			}
		}
		say("firewalld: put %s in the zone %s, which accepts", bridge, zoneName)
	}
	return nil
}

// stored is the permanent configuration of a zone or a policy.
func (d *daemon) stored(find, name string) (path dbus.ObjectPath, err error) {
	err = d.call(configPath, find, &path, name)
	return path, err
}

// makeZone makes the zone and the policy, as far as they are missing. firewalld makes
// such things permanent only, and loads them with everything else.
func (d *daemon) makeZone(say func(string, ...any)) error {
	loaded := true
	for _, x := range []struct {
		name, now, stored, add string
		settings               map[string]any
	}{
		{zoneName, ofZones + ".getZones", ofConfig + ".getZoneNames", ofConfig + ".addZone2", zoneSettings},
		{policyName, ofPolicies + ".getPolicies", ofConfig + ".getPolicyNames", ofConfig + ".addPolicy", policySettings},
	} {
		stored, err := d.list(configPath, x.stored)
		if err != nil {
			return err
		}
		if !slices.Contains(stored, x.name) {
			if err := d.call(configPath, x.add, nil, x.name, variants(x.settings)); err != nil {
				return err
			}
		}
		now, err := d.list(busPath, x.now)
		if err != nil {
			return err
		}
		loaded = loaded && slices.Contains(now, x.name)
	}
	if loaded {
		return nil
	}
	say("firewalld: made the zone %s and the policy %s, and reloaded it", zoneName, policyName)
	return d.call(busPath, busName+".reload", nil)
}

func variants(m map[string]any) map[string]dbus.Variant {
	out := map[string]dbus.Variant{}
	for k, v := range m {
		out[k] = dbus.MakeVariant(v)
	}
	return out
}

// leaveZone takes a network's bridge out of the zone. With the last bridge the zone
// and the policy go for good; firewalld forgets them at its next reload, and until
// then an empty zone does nothing. What has been changed since it was made stays.
func (rs *ruleset) leaveZone(n Network) error {
	d := rs.daemon()
	if d == nil {
		return nil
	}
	defer d.end()
	zone, err := d.zoneOf(n.Bridge.Name)
	if err != nil || zone != zoneName {
		return err
	}
	if err := d.call(busPath, ofZones+".removeInterface", nil, zoneName, n.Bridge.Name); err != nil {
		return err
	}
	names, err := d.list(configPath, ofConfig+".getZoneNames")
	if err != nil || !slices.Contains(names, zoneName) {
		return err
	}
	path, err := d.stored(ofConfig+".getZoneByName", zoneName)
	if err != nil {
		return err
	}
	var now map[string]dbus.Variant
	if err := d.call(path, ofConfig+".zone.getSettings2", &now); err != nil {
		return err
	}
	bridges, _ := now["interfaces"].Value().([]string)
	if delete(now, "interfaces"); !asMade(now, zoneSettings) {
		return nil
	}
	if !slices.Contains(bridges, n.Bridge.Name) {
		return nil
	}
	if len(bridges) > 1 {
		return d.call(path, ofConfig+".zone.removeInterface", nil, n.Bridge.Name)
	}
	if err := d.removePolicy(); err != nil { // it names the zone
		return err
	}
	return d.call(path, ofConfig+".zone.remove", nil)
}

func (d *daemon) removePolicy() error {
	names, err := d.list(configPath, ofConfig+".getPolicyNames")
	if err != nil || !slices.Contains(names, policyName) {
		return err
	}
	path, err := d.stored(ofConfig+".getPolicyByName", policyName)
	if err != nil {
		return err
	}
	return d.call(path, ofConfig+".policy.remove", nil)
}

// asMade tells whether settings are what they were made with: those the daemon has
// added are false, 0 or empty, or a number that it orders by.
func asMade(now map[string]dbus.Variant, made map[string]any) bool {
	for k, v := range made {
		if !reflect.DeepEqual(now[k].Value(), v) {
			return false
		}
	}
	for k, v := range now {
		if _, ok := made[k]; !ok && k != "priority" && !reflect.ValueOf(v.Value()).IsZero() {
			return false
		}
	}
	return true
}

// zoned are the networks whose bridges are in the zone.
func (rs *ruleset) zoned(networks []Network) (out []Rule) {
	d := rs.daemon()
	if d == nil {
		return nil
	}
	defer d.end()
	for _, n := range networks {
		if zone, err := d.zoneOf(n.Bridge.Name); err == nil && zone == zoneName {
			out = append(out, Rule{"firewalld zone " + zoneName, n.Bridge.Name, n.Name, "everything"})
		}
	}
	return out
}

// firewalldCommands do what ensure does by the bus, for good.
func firewalldCommands(networks []Network) string {
	zone := "firewall-cmd --permanent --zone=fastbr --set-target=ACCEPT"
	for _, n := range networks {
		zone += " && firewall-cmd --permanent --zone=fastbr --add-interface=" + n.Bridge.Name
	}
	return strings.Join([]string{
		"firewall-cmd --permanent --new-zone=fastbr",
		zone,
		"firewall-cmd --permanent --new-policy=fastbr-forwarding",
		"firewall-cmd --permanent --policy=fastbr-forwarding --set-target=ACCEPT",
		"firewall-cmd --permanent --policy=fastbr-forwarding --add-ingress-zone=ANY",
		"firewall-cmd --permanent --policy=fastbr-forwarding --add-egress-zone=fastbr",
		"firewall-cmd --reload",
	}, " && ")
}

// firewalldRemedy is what to do about a chain of firewalld's that drops what is a
// network's, as the end of a sentence.
func (rs *ruleset) firewalldRemedy(n Network, networks []Network) string {
	d := rs.daemon()
	if d == nil {
		return "give firewalld a zone for it: " + firewalldCommands(networks)
	}
	defer d.end()
	switch zone, err := d.zoneOf(n.Bridge.Name); {
	case err != nil:
		return err.Error()
	case zone == "":
		return mendsItself
	case zone == zoneName:
		return fmt.Sprintf("the zone %s and the policy %s are not as fastbr makes them: see firewall-cmd --info-zone=%s, --info-policy=%s",
			zoneName, policyName, zoneName, policyName)
	default:
		return fmt.Sprintf("it is in the zone %s; to have it in fastbr's: firewall-cmd --zone=%s --remove-interface=%s && firewall-cmd --permanent --zone=%s --remove-interface=%s && fastbr up",
			zone, zone, n.Bridge.Name, zone, n.Bridge.Name)
	}
}

// mendsItself says that Ensure has not come by since.
const mendsItself = "the next command that changes something lets it through, 'fastbr serve' does at once"
