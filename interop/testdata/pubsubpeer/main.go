// The pubsubpeer is the published arpc's pub/sub, of the last version that has it in its module, as a program that does what the
// lines of its standard input say.
//
//	pubsubpeer serve          a server; writes its address first
//	pubsubpeer client ADDR    a client
//
// The password is "pw". Both understand "pub TOPIC TEXT" and "one TOPIC TEXT", a client also "auth PASSWORD", "sub TOPIC" and
// "unsub TOPIC". Each line is answered by "ok" or "error TEXT"; a client writes "got TOPIC TEXT" for each message.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/lesismal/arpc/extension/pubsub"
	"github.com/lesismal/arpc/log"
)

const timeout = 10 * time.Second

var out sync.Mutex

func say(line string) {
	out.Lock()
	defer out.Unlock()
	fmt.Println(line)
}

func main() {
	log.SetLevel(log.LevelNone)
	var pub, one func(string, string) error
	var c *pubsub.Client
	if os.Args[1] == "serve" {
		s := pubsub.NewServer()
		s.Password = "pw"
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		go s.Serve(ln)
		say(ln.Addr().String())
		pub = func(topic, text string) error { return s.Publish(topic, text) }
		one = func(topic, text string) error { return s.PublishToOne(topic, text) }
	} else {
		var err error
		c, err = pubsub.NewClient(func() (net.Conn, error) { return net.DialTimeout("tcp", os.Args[2], timeout) })
		if err != nil {
			panic(err)
		}
		pub = func(topic, text string) error { return c.Publish(topic, text, timeout) }
		one = func(topic, text string) error { return c.PublishToOne(topic, text, timeout) }
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		words := append(strings.SplitN(in.Text(), " ", 3), "", "")
		var err error
		switch words[0] {
		case "pub":
			err = pub(words[1], words[2])
		case "one":
			err = one(words[1], words[2])
		case "auth":
			c.Password = words[1]
			err = c.Authenticate()
		case "sub":
			err = c.Subscribe(words[1], func(t *pubsub.Topic) { say("got " + t.Name + " " + string(t.Data)) }, timeout)
		case "unsub":
			err = c.Unsubscribe(words[1], timeout)
		}
		if err != nil {
			say("error " + err.Error())
		} else {
			say("ok")
		}
	}
}
