// Command forward copies TCP connections between a listening socket it inherits and an address.
//
// The socket is descriptor 3. It is inherited because it belongs to another network namespace than the one this program runs in: it was
// opened on the host's loopback address, and the address dialled exists only inside the node. Connections may live
// for days and be idle (WebSockets), so nothing here has a deadline but the dial.
//
//	forward ADDRESS
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		fail("usage: forward ADDRESS")
	}
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		fail(err)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			// Out of file descriptors, as a rule: give the open connections a moment to end.
			fmt.Fprintln(os.Stderr, "forward:", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go forward(client.(*net.TCPConn), os.Args[1])
	}
}

func forward(client *net.TCPConn, address string) {
	defer client.Close()
	dialled, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		fmt.Fprintln(os.Stderr, "forward:", err)
		return
	}
	server := dialled.(*net.TCPConn)
	defer server.Close()
	done := make(chan struct{})
	go func() {
		pipe(server, client)
		close(done)
	}()
	pipe(client, server)
	<-done
}

// pipe copies until the source ends and passes that end on, so that half-closed connections stay half-closed. A
// connection that breaks is broken on both sides.
func pipe(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		from.Close()
		return
	}
	to.CloseWrite()
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, "forward:", why)
	os.Exit(1)
}
