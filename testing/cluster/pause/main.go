// Command pause holds a pod's namespaces open until it is told to end. The kernel reaps its children:
// ignoring SIGCHLD asks for that.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signal.Ignore(syscall.SIGCHLD)
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
}
