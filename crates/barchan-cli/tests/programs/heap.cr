# A few seconds of work for the collector under Crystal: what it prints depends on nothing but this text, so two
# collectors must agree on it. A tree, a hash, strings and fibers, of which some are kept to the end.

class Random31
  def initialize(@state : Int64)
  end

  def below(limit : Int32) : Int32
    @state = (@state &* 16807_i64) % 2147483647_i64
    (@state % limit).to_i
  end
end

class Node
  property left : Node?
  property right : Node?
  property value : Int32
  property name : String

  def initialize(@value, @name)
  end

  def self.tree(depth : Int32, random : Random31) : Node
    node = new(random.below(1_000_000), "node #{depth}")
    if depth > 0
      node.left = tree(depth - 1, random)
      node.right = tree(depth - 1, random)
    end
    node
  end

  def sum : Int64
    total = @value.to_i64 + @name.size
    total = (total + (@left.try(&.sum) || 0_i64)) % 1_000_000_007
    (total + (@right.try(&.sum) || 0_i64)) % 1_000_000_007
  end

  # Replaces a subtree somewhere below.
  def replace(random : Random31)
    node = self
    8.times do
      node = (random.below(2) == 0 ? node.left : node.right) || break
    end
    node.left = Node.tree(4, random) if node
  end
end

random = Random31.new(42)
kept = Node.tree(15, random)
table = {} of String => Array(Int32)

20.times do |round|
  Node.tree(14, random) # garbage
  2_000.times { kept.replace(random) }
  10_000.times do |n|
    key = "key-#{random.below(20_000)}"
    if n % 5 == 0
      table.delete(key)
    else
      table[key] = Array.new(12) { |i| i + round }
    end
  end
  puts "round #{round}: #{kept.sum} #{table.size} #{table.sum { |_, list| list.last.to_i64 }}"
end

# Fibers: stacks of their own, which hold what nothing else does.
channel = Channel(Int64).new
8.times do |number|
  spawn do
    own = Random31.new(number.to_i64 + 1)
    tree = Node.tree(10, own)
    sum = 0_i64
    50.times do
      tree.replace(own)
      sum = (sum + tree.sum) % 1_000_000_007
      Fiber.yield
    end
    channel.send(sum)
  end
end
sums = Array.new(8) { channel.receive }
puts "fibers: #{sums.sort.join(' ')}"

text = String.build { |io| 40_000.times { |n| io << "line " << n << " of the text; " } }
puts "text: #{text.size} #{text.split("; ").count(&.ends_with?("7 of the text"))} #{text.gsub("line", "row").hash == text.gsub("line", "row").hash}"
