-- Counts the members that a node has at a topic, so that it is known where they are when it is dead.
-- KEYS: the node's topics. ARGV: topic, difference.
if redis.call('HINCRBY', KEYS[1], ARGV[1], ARGV[2]) <= 0 then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 0
