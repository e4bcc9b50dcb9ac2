module pubsubpeer

go 1.26.0

require github.com/lesismal/arpc v1.2.16
